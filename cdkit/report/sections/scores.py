"""Report section of the scores: every evaluated set with its intervals, and the table beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cdkit.core.storage import read_json
from cdkit.evaluation.charts import Interval, interval_chart
from cdkit.evaluation.comparison import (
    COLUMN_NAMES,
    COLUMNS,
    GROUP_NAMES,
    OWN_COLUMNS,
    TableRow,
    bounds_text,
    headings,
    interval_text,
    short_number,
    shown_columns,
)
from cdkit.evaluation.config import MAIN
from cdkit.report.run_folder import StepFolder

# name → heading, what it says, multiplied by.
METRICS: Mapping[str, tuple[str, str, float]] = {
    "text_alignment": ("text alignment", "cosine of image and prompt without its modifier tokens; more is better", 1),
    "clip_score": ("CLIPScore", "2.5 · max(cosine, 0), the scale of the paper's text alignment; more is better", 1),
    "image_alignment": ("image alignment", "mean cosine with the concept's photos; more is better", 1),
    "dino_image_alignment": ("DINO image alignment", "the same by a DINO model; more is better", 1),
    "nearest_photo": ("nearest photo", "cosine with the most similar training photo; near 1 is a copy", 1),
    "drift": (
        "drift",
        "1 − cosine with the base model's image of the class prompt at the same seed; less is better",
        1,
    ),
    "text_change": (
        "change of text alignment",
        "of prompts that have nothing to do with the concept, against the base model at the same seeds; 0 is none",
        1,
    ),
    "pixels_kept": (
        "pixels kept",
        "share of the same images' pixels that are as the base model drew them; more is better",
        1,
    ),
    "kid": ("KID × 10³", "distance to real images of the class, cubic kernel; less is better", 1000),
    "delta_bytes": ("delta, MB", "size of the delta's file", 1e-6),
    "train_seconds": ("training, s", "seconds of training", 1),
    "seconds_per_image": ("sampling, s", "seconds per image", 1),
}
# More is better, or less; the others are neither.
DIRECTIONS = {
    **dict.fromkeys(("text_alignment", "clip_score", "image_alignment", "dino_image_alignment", "pixels_kept"), 1),
    **dict.fromkeys(("drift", "kid"), -1),
}
# What pipelines call the base model's samples among the sets that are compared.
BASE_SET = ": before"
# The methods of the paper's own.
HIGHLIGHTED = ("custom-diffusion", "joint", "merged")
CHARTED = ("text_alignment", "image_alignment", "dino_image_alignment", "nearest_photo", "drift", "pixels_kept", "kid")


@dataclass(frozen=True)
class ScoredSet:
    """One evaluated set: a label, and its estimates by metric, in the units of the page."""

    step: str
    label: str
    metrics: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ScoresSection:
    """All evaluated sets, a chart per score that has intervals, and what the scores were made with."""

    sets: Sequence[ScoredSet]
    columns: Sequence[tuple[str, str, str]]
    charts: Sequence[tuple[str, str]]
    encoders: Sequence[str]
    notes: Sequence[str]
    deviations: Sequence[str]
    raw: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def main_sets(self) -> list[ScoredSet]:
        """The set that each step was about, without those it was compared with."""
        return [scored for scored in self.sets if scored.label == scored.step]

    def mark(self, scored: ScoredSet, metric: str) -> str:
        """`better` or `worse` than the base model's set of the same step, where their intervals part; else empty.

        A figure without an interval says neither.
        """
        base = next((s for s in self.sets if s.step == scored.step and s.label.endswith(BASE_SET)), None)
        direction = DIRECTIONS.get(metric.partition(".")[0], 0)
        if base is None or scored is base or not direction or metric not in scored.metrics:
            return ""
        one, other = scored.metrics[metric], base.metrics.get(metric, {})
        if None in (one["low"], one["high"], other.get("low"), other.get("high")):
            return ""
        if one["low"] > other["high"]:
            return "better" if direction > 0 else "worse"
        if one["high"] < other["low"]:
            return "worse" if direction > 0 else "better"
        return ""

    def cell(self, scored: ScoredSet, metric: str) -> str:
        """`0.731 (0.702–0.760)`; empty when the set has no such score."""
        return interval_text(scored.metrics[metric]) if metric in scored.metrics else ""

    def value(self, scored: ScoredSet, metric: str) -> str:
        """The estimate alone; an en dash when the set has no such score."""
        return short_number(scored.metrics[metric]["value"]) if metric in scored.metrics else "–"

    def bounds(self, scored: ScoredSet, metric: str) -> str:
        """Its interval; empty when it has none."""
        return bounds_text(scored.metrics[metric]) if metric in scored.metrics else ""

    def count(self, scored: ScoredSet, metric: str) -> int:
        return int(scored.metrics[metric]["n"]) if metric in scored.metrics else 0


def scores_section(steps: Sequence[StepFolder]) -> ScoresSection | None:
    """Every set of every evaluate step; None when there is none."""
    sets: list[ScoredSet] = []
    encoders: list[str] = []
    notes: list[str] = []
    off: list[str] = []
    raw: list[dict[str, Any]] = []
    for step in steps:
        if not (step.path / "summary.json").exists():
            continue
        summary = read_json(step.path / "summary.json")
        dino = f", DINO {summary['dino']}" if summary.get("dino") else ""
        encoders.append(f"{summary.get('encoder')}{dino}")
        for name, entry in summary["sets"].items():
            label = step.name if name == MAIN else f"{step.name}: {name}"
            sets.append(ScoredSet(step.name, label, {k: _scaled(k, v) for k, v in entry["metrics"].items()}))
            notes.extend(str(note) for note in entry.get("notes", []))
            raw.extend({"step": step.name, "set": name, "metric": k, **v} for k, v in entry["metrics"].items())
        if summary.get("protocol", {}).get("preset"):
            off.extend(str(line) for line in summary["protocol"]["deviations"])
    if not sets:
        return None
    names = list(dict.fromkeys(name for scored in sets for name in scored.metrics))
    ordered = [name for name in METRICS if name in names] + [name for name in names if name not in METRICS]
    return ScoresSection(
        sets=sets,
        columns=[(name, *heading(name)) for name in ordered],
        charts=[chart for name in CHARTED if (chart := _chart(name, sets)) is not None],
        encoders=list(dict.fromkeys(encoders)),
        notes=list(dict.fromkeys(notes)),
        deviations=list(dict.fromkeys(off)),
        raw=raw,
    )


def heading(metric: str) -> tuple[str, str]:
    """A metric's heading and explanation; `image_alignment.dog` is the one of the concept dog."""
    name, _, concept = metric.partition(".")
    title, what, _ = METRICS.get(name, (name.replace("_", " "), "", 1))
    return (f"{title}, {concept}" if concept else title), what


def _scaled(metric: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    factor = METRICS.get(metric.partition(".")[0], ("", "", 1.0))[2]
    scaled = dict(estimate)
    for key in ("value", "low", "high", "standard_error"):
        if scaled.get(key) is not None:
            scaled[key] = scaled[key] * factor
    return scaled


def _chart(metric: str, sets: Sequence[ScoredSet]) -> tuple[str, str] | None:
    """One chart over all sets; with a single set its alignments would be one dot each, so there is none."""
    rows = [_interval(scored.label, scored.metrics[metric]) for scored in sets if metric in scored.metrics]
    if len(rows) < 2:
        return None
    title, what = heading(metric)
    return title, interval_chart(rows, x_label=what.partition(";")[0] if len(what) < 60 else title, title=title)


def _interval(label: str, estimate: Mapping[str, Any], *, highlight: bool = False) -> Interval:
    return Interval(label, estimate["value"], estimate["low"], estimate["high"], highlight)


@dataclass(frozen=True)
class ComparisonSection:
    """The table of a compare step: groups of (method, cells), and where the order differs from the paper's."""

    name: str
    headings: Sequence[str]
    groups: Mapping[str, Sequence[tuple[str, Sequence[str]]]]
    notes: Sequence[str]
    charts: Sequence[tuple[str, str]]


def comparison_section(step: StepFolder) -> ComparisonSection | None:
    """Ours with intervals and the paper's figures beside; None when the step wrote no table."""
    if not (step.path / "table.json").exists():
        return None
    details = read_json(step.path / "table.json")
    rows = [TableRow(**entry) for entry in details["rows"]]
    shown = shown_columns(rows)
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for row in rows:
        groups.setdefault(GROUP_NAMES.get(row.group, row.group), []).append((row.method, row.cells(shown)))
    return ComparisonSection(step.name, headings(shown), groups, details["notes"], _comparison_charts(rows))


def _comparison_charts(rows: Sequence[TableRow]) -> list[tuple[str, str]]:
    charts = []
    for group in dict.fromkeys(row.group for row in rows):
        for column in (*COLUMNS, *OWN_COLUMNS):
            methods = [row for row in rows if row.group == group and column in row.ours]
            if len(methods) > 1:
                intervals = [
                    _interval(row.method, row.ours[column], highlight=row.method in HIGHLIGHTED) for row in methods
                ]
                title = f"{GROUP_NAMES.get(group, group)}: {COLUMN_NAMES[column]}"
                charts.append((title, interval_chart(intervals, x_label=COLUMN_NAMES[column], title=title)))
    return charts
