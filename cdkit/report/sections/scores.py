"""Report section of the scores: every evaluated set with its intervals, beside the base model's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdkit.core.storage import read_json
from cdkit.evaluation.charts import Interval, interval_chart
from cdkit.evaluation.comparison import bounds_text, interval_text, short_number
from cdkit.evaluation.config import MAIN
from cdkit.report.picture_box import Chart, PictureBox
from cdkit.report.run_folder import RunFolder, StepFolder
from cdkit.report.subjects import Subject, joined, subjects_of

# A metric's name, its heading, and what it says.
Column = tuple[str, str, str]
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
    "train_seconds": ("making it, s", "seconds of the training, or of the merge of what was trained before", 1),
    "seconds_per_image": ("drawing, s", "seconds per image", 1),
}
# More is better, or less; the others are neither.
DIRECTIONS = {
    **dict.fromkeys(("text_alignment", "clip_score", "image_alignment", "dino_image_alignment", "pixels_kept"), 1),
    **dict.fromkeys(("drift", "kid"), -1),
}
# What the base model's samples are called among the sets that are compared where no step says it.
BASE_SETS = ("before", "base")
CHARTED = ("text_alignment", "image_alignment", "dino_image_alignment", "nearest_photo", "drift", "pixels_kept", "kid")


@dataclass(frozen=True)
class ScoredSet:
    """One evaluated set: what it is among those of its step, and its estimates by metric, in the page's units."""

    name: str
    metrics: Mapping[str, Mapping[str, Any]]

    def cell(self, metric: str) -> str:
        """`0.731 (0.702–0.760)`; empty when the set has no such score."""
        return interval_text(self.metrics[metric]) if metric in self.metrics else ""

    def value(self, metric: str) -> str:
        """The estimate alone; an en dash when the set has no such score."""
        return short_number(self.metrics[metric]["value"]) if metric in self.metrics else "–"

    def bounds(self, metric: str) -> str:
        """Its interval; empty when it has none."""
        return bounds_text(self.metrics[metric]) if metric in self.metrics else ""

    def count(self, metric: str) -> int:
        return int(self.metrics[metric]["n"]) if metric in self.metrics else 0


@dataclass(frozen=True)
class ScoreTable:
    """The sets of one evaluate step, the base model's first where it is there, and what they are of."""

    step: str
    title: str
    sets: Sequence[ScoredSet]
    base: ScoredSet | None
    main: ScoredSet
    columns: Sequence[Column]

    def mark(self, scored: ScoredSet, metric: str) -> str:
        """`better` or `worse` than the base model's set of the same step, where their intervals part; else empty.

        A figure without an interval says neither.
        """
        direction = DIRECTIONS.get(metric.partition(".")[0], 0)
        if self.base is None or scored is self.base or not direction or metric not in scored.metrics:
            return ""
        one, other = scored.metrics[metric], self.base.metrics.get(metric, {})
        if None in (one["low"], one["high"], other.get("low"), other.get("high")):
            return ""
        if one["low"] > other["high"]:
            return "better" if direction > 0 else "worse"
        if one["high"] < other["low"]:
            return "worse" if direction > 0 else "better"
        return ""

    def label(self, scored: ScoredSet) -> str:
        """What a set is among those of all steps."""
        return f"{self.title}: {scored.name}" if len(self.sets) > 1 else self.title


@dataclass(frozen=True)
class ScoresSection:
    """A table for each evaluate step, a chart per score that has intervals, and what the scores were made with."""

    tables: Sequence[ScoreTable]
    columns: Sequence[Column]
    charts: Sequence[Chart]
    encoders: Sequence[str]
    notes: Sequence[str]
    deviations: Sequence[str]
    raw: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def compared(self) -> list[ScoreTable]:
        """The steps that score several sets."""
        return [table for table in self.tables if len(table.sets) > 1]

    @property
    def single(self) -> list[ScoreTable]:
        """The steps that score one."""
        return [table for table in self.tables if len(table.sets) == 1]


def scores_section(run: RunFolder, subjects: Sequence[Subject], pictures: PictureBox) -> ScoresSection | None:
    """Every set of every evaluate step; None when there is none."""
    tables: list[ScoreTable] = []
    encoders: list[str] = []
    notes: list[str] = []
    off: list[str] = []
    raw: list[dict[str, Any]] = []
    for step in run.of_stage("evaluate"):
        if not (step.path / "summary.json").exists():
            continue
        summary = read_json(step.path / "summary.json")
        dino = f", DINO {summary['dino']}" if summary.get("dino") else ""
        encoders.append(f"{summary.get('encoder')}{dino}")
        tables.append(_table(step, run, subjects, summary["sets"]))
        for name, entry in summary["sets"].items():
            notes.extend(str(note) for note in entry.get("notes", []))
            raw.extend({"step": step.name, "set": name, "metric": k, **v} for k, v in entry["metrics"].items())
        if summary.get("protocol", {}).get("preset"):
            off.extend(str(line) for line in summary["protocol"]["deviations"])
    if not tables:
        return None
    tables = _apart(tables)
    return ScoresSection(
        tables=tables,
        columns=_columns([scored for table in tables for scored in table.sets]),
        charts=[chart for name in CHARTED if (chart := _chart(name, tables, pictures)) is not None],
        encoders=list(dict.fromkeys(encoders)),
        notes=list(dict.fromkeys(notes)),
        deviations=list(dict.fromkeys(off)),
        raw=raw,
    )


def _table(
    step: StepFolder, run: RunFolder, subjects: Sequence[Subject], sets: Mapping[str, Mapping[str, Any]]
) -> ScoreTable:
    compared = step.values.get("compare")
    sources = {MAIN: step.values.get("samples"), **(compared if isinstance(compared, Mapping) else {})}
    # With which deltas each set was drawn; what is no step of the run may have been drawn with any.
    steps = {name: next(iter(run.named(source)), None) for name, source in sources.items()}
    main = _main_name(run, steps[MAIN], sets)
    scored = {
        name: ScoredSet(main if name == MAIN else name, {k: _scaled(k, v) for k, v in entry["metrics"].items()})
        for name, entry in sets.items()
    }
    bases = [name for name in scored if (drawn := steps.get(name)) is not None and is_base(run, drawn)]
    base = next(iter([*bases, *(name for name in BASE_SETS if name in scored)]), None)
    order = sorted(scored, key=lambda name: name != base)
    title = joined([subject.name for subject in subjects_of(step, run, subjects)]) or step.name
    return ScoreTable(
        step.name,
        title[:1].upper() + title[1:],
        [scored[name] for name in order],
        scored[base] if base is not None and base != MAIN else None,
        scored[MAIN],
        _columns(list(scored.values())),
    )


def is_base(run: RunFolder, step: StepFolder) -> bool:
    """Whether a sample step drew with the base model alone."""
    return not (run.deltas_of(step) or step.values.get("deltas") or step.details.get("tokens"))


def _main_name(run: RunFolder, step: StepFolder | None, sets: Mapping[str, Any]) -> str:
    """What the set is called that a step is about."""
    if step is None:
        return "the samples"
    merged = any(delta.stage == "merge" for delta in run.deltas_of(step))
    name = "before" if is_base(run, step) else "merged" if merged else "after"
    return step.name if name in sets else name


def _apart(tables: Sequence[ScoreTable]) -> list[ScoreTable]:
    """The tables with their step's name where another has the same title."""
    often = Counter(table.title for table in tables)
    return [
        replace(table, title=f"{table.title}, {table.step}") if often[table.title] > 1 else table for table in tables
    ]


def _columns(sets: Sequence[ScoredSet]) -> list[Column]:
    names = list(dict.fromkeys(name for scored in sets for name in scored.metrics))
    # What is no score of ours comes last; image_alignment.dog, of one concept, behind that of all.
    place = {name: number for number, name in enumerate(METRICS)}
    ordered = sorted(names, key=lambda name: (place.get(name.partition(".")[0], len(place)), "." in name))
    return [(name, *heading(name)) for name in ordered]


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


def _chart(metric: str, tables: Sequence[ScoreTable], pictures: PictureBox) -> Chart | None:
    """One chart over all sets; with a single set its alignments would be one dot each, so there is none."""
    rows = [
        # What it is first: long names of concepts are cut.
        interval(f"{scored.name}: {table.title}", scored.metrics[metric], highlight=scored is table.main)
        for table in tables
        for scored in table.sets
        if metric in scored.metrics
    ]
    if len(rows) < 2:
        return None
    title, what = heading(metric)
    svg = interval_chart(rows, x_label=what.partition(";")[0] if len(what) < 60 else title, title=title)
    return pictures.chart(title, svg, f"scores-{metric}")


def interval(label: str, estimate: Mapping[str, Any], *, highlight: bool = False) -> Interval:
    """An estimate as a row of a chart."""
    return Interval(label, estimate["value"], estimate["low"], estimate["high"], highlight)
