"""Report sections of how concepts were taught: trainings, merges, and what moved in the model."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.formatting import json_text
from cdkit.core.storage import read_json
from cdkit.deltas.delta import DELTA_NAME, delta_family
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import family_by_name
from cdkit.deltas.formats.textual_inversion import Spelling, spellings
from cdkit.deltas.methods import METHODS
from cdkit.evaluation.charts import Series, Strip, line_chart, strip_chart
from cdkit.report.picture_box import Chart, PictureBox, Shown
from cdkit.report.run_folder import StepFolder

SAMPLES_SHOWN = 8
POINTS = 600


@dataclass(frozen=True)
class TrainingSection:
    """One training run."""

    name: str
    facts: Sequence[tuple[str, str]]
    tokens: Sequence[str]
    spellings: Sequence[Spelling]
    prompts: Sequence[str]
    chart: Chart | None
    samples: Sequence[tuple[str, Shown]]
    delta_bytes: int | None


def training_section(step: StepFolder, pictures: PictureBox) -> TrainingSection:
    """The loss so far, the samples drawn on the way, and the settings."""
    details = step.details
    named = {
        "method": details.get("method") or step.values.get("method"),
        "steps": details.get("steps"),
        "seconds": details.get("seconds"),
        "final loss": details.get("final_loss"),
        "base model": step.values.get("base"),
        "seed": _setting(step, "seed"),
        "batch size": _setting(step, "batch_size"),
        "learning rate": _setting(step, "learning_rate"),
    }
    delta = step.path / DELTA_NAME
    loss = _loss_chart(step.path / "metrics.csv", step.name)
    return TrainingSection(
        name=step.name,
        facts=[(key, _short(value)) for key, value in named.items() if value is not None],
        tokens=token_texts(details.get("tokens", [])),
        spellings=token_spellings(step),
        prompts=[str(prompt) for prompt in details.get("prompts", [])],
        chart=pictures.chart(f"Loss of {step.name}: as it was (faint) and smoothed", loss, f"loss {step.name}"),
        samples=_training_samples(step.path / "samples", pictures, step.name),
        delta_bytes=delta.stat().st_size if delta.exists() else None,
    )


def token_texts(tokens: Any) -> list[str]:
    """The tokens' texts, whether the manifest lists texts or records with a text each, or maps concepts to them."""
    entries = list(tokens.values()) if isinstance(tokens, Mapping) else list(tokens or [])
    texts = [entry.get("token") or entry.get("text") if isinstance(entry, Mapping) else entry for entry in entries]
    return [str(text) for text in texts if text]


def step_family(step: StepFolder) -> Family | None:
    """The family of transformers that a step's delta is of; None for a U-Net's."""
    return family_by_name(str(step.details.get("family") or delta_family(step.path)))


def token_spellings(step: StepFolder) -> list[Spelling]:
    """How a step's modifier tokens are typed in other tools; a rare word of the vocabulary is typed as it is.

    None for a transformer's, whose rows no other tool reads.
    """
    if step_family(step) is not None:
        return []
    method = METHODS.get(str(step.details.get("method") or step.values.get("method") or ""))
    words = token_texts(step.details.get("tokens", []))
    return [] if method is not None and method.word == "rare" else spellings(words)


def _setting(step: StepFolder, name: str) -> Any:
    return step.manifest.config.get(name) if step.manifest is not None else step.values.get(name)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _loss_chart(path: Path, name: str) -> str:
    """The loss as it was, faintly, and smoothed; empty when no step was recorded."""
    columns = _read_metrics(path)
    steps = columns.get("step", [])
    if not steps:
        return ""
    series = [Series("", *_thinned(steps, columns["loss"]), faint=True)] if "loss" in columns else []
    labels = {"loss": "loss, smoothed", "target_loss": "photos", "regularization_loss": "regularization"}
    for column, label in labels.items():
        values = columns.get(column, [])
        if any(math.isfinite(value) for value in values):
            series.append(Series(label, *_thinned(steps, _smoothed(values))))
    return line_chart(series, x_label="step", y_label="loss", title=f"Loss of {name}")


def _read_metrics(path: Path) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as handle:
            for key, text in (cell for row in csv.DictReader(handle) for cell in row.items()):
                if key is not None:
                    columns.setdefault(key, []).append(_number(text))
    return columns


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return math.nan


def _smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a window of a twentieth of the run around each step; values that are not finite do not count."""
    half = max(len(values) // 40, 1)
    means = []
    for place in range(len(values)):
        window = [v for v in values[max(place - half, 0) : place + half + 1] if math.isfinite(v)]
        means.append(sum(window) / len(window) if window else math.nan)
    return means


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    every = max(len(steps) // POINTS, 1)
    return list(steps[::every]), list(values[::every])


def _training_samples(folder: Path, pictures: PictureBox, name: str) -> list[tuple[str, Shown]]:
    paths = sorted(folder.glob("*.png")) if folder.is_dir() else []
    every = max(-(-len(paths) // SAMPLES_SHOWN), 1)
    kept = sorted({*paths[::every], *paths[-1:]})
    shown = [(path.stem, pictures.file(path, 420, f"{name} {path.stem}")) for path in kept]
    steps = ((stem.rpartition("-")[2].lstrip("0") or "0", picture) for stem, picture in shown)
    return [(f"step {step}", picture) for step, picture in steps if picture is not None]


@dataclass(frozen=True)
class MergeSection:
    """One merge."""

    name: str
    facts: Sequence[tuple[str, str]]
    tokens: Sequence[str]
    spellings: Sequence[Spelling]
    conflicts: Sequence[str]


def merge_section(step: StepFolder) -> MergeSection:
    """How exactly the constraints are met and how far the rest moved."""
    details = step.details
    named = {
        "constraint residual": details.get("constraint_residual"),
        "drift of other captions": details.get("drift"),
        "size over its deltas'": details.get("growth"),
        "condition number": details.get("condition"),
        "seconds": details.get("seconds"),
        "rank": details.get("rank"),
    }
    conflicts = [
        json_text(item) if isinstance(item, Mapping) else str(item) for item in details.get("conflicts") or []
    ]
    return MergeSection(
        step.name,
        [(key, _short(value)) for key, value in named.items() if value is not None],
        token_texts(details.get("tokens", [])),
        token_spellings(step),
        conflicts,
    )


@dataclass(frozen=True)
class WeightSection:
    """Rate of change of weights by group."""

    name: str
    tuned: str
    groups: Sequence[Mapping[str, Any]]
    chart: Chart | None


def weight_section(step: StepFolder, pictures: PictureBox) -> WeightSection | None:
    """The groups' rates and a dot per parameter; None when the step wrote none."""
    if not (step.path / "weight_change.json").exists():
        return None
    details = read_json(step.path / "weight_change.json")
    rates: dict[str, list[float]] = {}
    with (step.path / "weight_change.csv").open(encoding="utf-8", newline="") as handle:
        for row in csv.DictReader(handle):
            if row["rate"]:
                rates.setdefault(row["group"], []).append(float(row["rate"]))
    strips = [Strip(g["group"], rates.get(g["group"], [])) for g in details["groups"]]
    chart = strip_chart(strips, x_label="rate of change ‖θ′ − θ‖ / ‖θ‖", title=f"Weight change, {step.name}")
    tuned = str(step.values.get("tuned") or Path(str(details.get("tuned", ""))).name)
    shown = pictures.chart("A dot per parameter that moved, a bar at their mean", chart, f"weights {step.name}")
    return WeightSection(step.name, tuned, details["groups"], shown)


@dataclass(frozen=True)
class AttentionSection:
    """Where each token of a prompt was looked at."""

    name: str
    prompt: str
    strip: Shown


def attention_section(step: StepFolder, pictures: PictureBox) -> AttentionSection | None:
    """The strip of maps; None when the step wrote none."""
    strip = step.path / "attention.png"
    shown = pictures.file(strip, 1210, f"attention {step.name}") if strip.exists() else None
    if shown is None:
        return None
    return AttentionSection(step.name, str(step.details.get("prompt") or step.values.get("prompt", "")), shown)
