"""Rate of change of weights: how far training moved each parameter, and which kind of layer moved most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cdkit.core.errors import ConfigError
from cdkit.core.machine import choose_device
from cdkit.core.protocols import Progress
from cdkit.core.shards import read_tensor_header
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import DELTA_FORMATS, DELTA_NAME, load_delta
from cdkit.deltas.families.table import denoiser_of
from cdkit.deltas.low_rank import matrix
from cdkit.evaluation.config import WeightChangeConfig

Checkpoint = dict[str, dict[str, "Tensor"]]
# The part that draws, among a checkpoint's.
DENOISER = "denoiser"
CHANGE_TABLE_NAME, PLOT_NAME, CHANGE_NAME = "weight_change.csv", "weight_change.svg", "weight_change.json"


def compare_weights(config: WeightChangeConfig, progress: Progress) -> tuple[list[ParameterChange], list[GroupChange]]:
    """Every parameter's change and every group's; raises ConfigError when the two are of different shapes."""
    changes = parameter_changes(_pairs(config, progress))
    return changes, group_changes(changes)


def plot(changes: list[ParameterChange], groups: list[GroupChange]) -> str:
    """An SVG: one dot per parameter that moved, one row per group, a bar at their mean."""
    from cdkit.evaluation.charts import Strip, strip_chart

    rows = [
        Strip(name, [change.rate for change in changes if change.group == name and change.rate is not None])
        for name in (group.group for group in groups)
    ]
    return strip_chart(rows, x_label="rate of change ‖θ′ − θ‖ / ‖θ‖", title="Rate of change of weights by group")


def _pairs(config: WeightChangeConfig, progress: Progress) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(name, group, base, tuned) of every parameter."""
    loaded: dict[str, Checkpoint] = {}
    base_of_base = load_delta(config.base).base if _is_delta(config.base) else "embedded"
    base = load_checkpoint(config.base, base_of_base, config.device, progress, loaded)
    tuned = load_checkpoint(config.tuned, config.base, config.device, progress, loaded)
    for part in (DENOISER, "text_encoder"):
        before, after = base.get(part, {}), tuned.get(part, {})
        alike = [name for name in before if name in after and before[name].shape == after[name].shape]
        if part == DENOISER and not len(alike) == len(before) == len(after):
            raise ConfigError(
                f"{config.base} and {config.tuned} are not the same kind of model: what draws differs in shape.",
                hint="Compare a base model with a delta or a fine-tuned copy of it.",
            )
        for name in alike:
            yield name, group_of(name) if part == DENOISER else "text encoder", before[name], after[name]


def load_checkpoint(
    spec: str, default_base: str, device: str | None, progress: Progress, loaded: dict[str, Checkpoint] | None = None
) -> Checkpoint:
    """Parameters in fp32 by part: a pipeline's denoiser and text encoder; a delta's denoiser on its base.

    loaded: base models read before, which are not read again.
    """
    loaded = {} if loaded is None else loaded
    if not _is_delta(spec):
        if spec not in loaded:
            progress.note(f"reading {spec}")
            pipeline = load_base_model(spec, device=choose_device(device or "cpu"))
            parts = {DENOISER: denoiser_of(pipeline), "text_encoder": getattr(pipeline, "text_encoder", None)}
            loaded[spec] = {part: _parameters(module) for part, module in parts.items()}
        return loaded[spec]
    delta = load_delta(spec)
    if delta.gated:
        raise ConfigError(
            f"The delta {spec} is gated: it changes no weight, it adds to keys and values where its words stand.",
            hint="cdkit delta inspect shows the size of what it adds.",
        )
    base = default_base if not _is_delta(default_base) else load_delta(default_base).base
    weights = dict(load_checkpoint(base, "embedded", device, progress, loaded)[DENOISER])
    for name, change in delta.changes.items():
        if name not in weights or tuple(weights[name].shape) != tuple(change.shape):
            raise ConfigError(f"The delta {spec} does not fit {base}: {name}.", hint="Give the base it was made on.")
        weights[name] = weights[name] + matrix(change).to(weights[name].device)
    return {DENOISER: weights}


def _is_delta(spec: str) -> bool:
    path = Path(spec)
    if path.is_dir():
        return (path / DELTA_NAME).exists()
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    return read_tensor_header(path)[0].get("format", "").startswith(DELTA_FORMATS)


def _parameters(module: Any) -> dict[str, Tensor]:
    if module is None:
        return {}
    return {name: parameter.detach().float() for name, parameter in module.named_parameters()}


GROUPS = ("cross-attention", "self-attention", "other", "text encoder")


@dataclass(frozen=True)
class ParameterChange:
    """One parameter: its name, group, number of values, and rate of change; None where its base is all zeros."""

    name: str
    group: str
    values: int
    rate: float | None


@dataclass(frozen=True)
class GroupChange:
    """One group: its parameters, values, how many of them moved, and the mean and largest rate with its parameter."""

    group: str
    parameters: int
    values: int
    moved: int
    mean_rate: float
    largest_rate: float
    largest: str


def group_of(name: str) -> str:
    """The paper's group of a parameter; diffusers calls cross-attention attn2, self-attention attn1.

    Where text and picture share one attention, what belongs to the text counts as cross-attention.
    """
    parts = name.split(".")
    if "attn2" in parts or any(part.startswith(("add_", "to_add_", "norm_added_")) for part in parts):
        return "cross-attention"
    return "self-attention" if {"attn", "attn1"} & set(parts) else "other"


def rate_of_change(base: Tensor, tuned: Tensor) -> float | None:
    """‖tuned - base‖ / ‖base‖ in float64; None for a base of zeros, which has no rate."""
    norm = float(base.double().norm())
    return float((tuned.double() - base.double()).norm()) / norm if norm > 0 else None


def parameter_changes(pairs: Iterable[tuple[str, str, Tensor, Tensor]]) -> list[ParameterChange]:
    """The change of every (name, group, base, tuned)."""
    return [
        ParameterChange(name, group, base.numel(), rate_of_change(base, tuned)) for name, group, base, tuned in pairs
    ]


def group_changes(changes: Sequence[ParameterChange]) -> list[GroupChange]:
    """One summary per group that has parameters, in the paper's order; parameters without a rate do not count."""
    groups = []
    for group in GROUPS:
        rated = [change for change in changes if change.group == group and change.rate is not None]
        if not rated:
            continue
        rates = [change.rate or 0.0 for change in rated]
        groups.append(
            GroupChange(
                group=group,
                parameters=len(rated),
                values=sum(change.values for change in rated),
                moved=sum(rate > 0 for rate in rates),
                mean_rate=sum(rates) / len(rates),
                largest_rate=max(rates),
                largest=max(rated, key=lambda change: change.rate or 0.0).name,
            )
        )
    return groups
