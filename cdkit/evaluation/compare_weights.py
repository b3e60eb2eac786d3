"""Stage `weight-change`: rate of change of the weights between two checkpoints, as a table and a plot."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.config import StageConfig, setting
from cdkit.datasets import Dataset
from cdkit.devices import choose_device
from cdkit.errors import ConfigError
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context, Progress
from cdkit.storage import Folder, atomic_path, write_json, write_text
from cdkit.weights.base_model import load_base_model
from cdkit.weights.delta import DELTA_FORMATS, DELTA_NAME, load_delta, matrix
from cdkit.weights.tensor_file import read_tensor_header

if TYPE_CHECKING:
    from torch import Tensor

    from cdkit.evaluation.weight_change import GroupChange, ParameterChange

Checkpoint = dict[str, dict[str, "Tensor"]]
TABLE_NAME, PLOT_NAME, SUMMARY_NAME = "weight_change.csv", "weight_change.svg", "weight_change.json"


class WeightChangeConfig(StageConfig):
    """Which two checkpoints to compare."""

    base: str = setting("embedded", "The first checkpoint: a base model, or a delta on its own base.", input="model")
    tuned: str = setting(help="The second: a delta (on --base), or a fine-tuned pipeline's folder.", input="model")
    device: str | None = setting(None, "Device [default: the CPU].", execution=True)


def weight_change(config: WeightChangeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write weight_change.csv (one row per parameter), .json (per group) and .svg."""
    changes, groups = compare_weights(config, context.progress)
    with atomic_path(out / TABLE_NAME) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["parameter", "group", "values", "rate"])
        writer.writerows((c.name, c.group, c.values, "" if c.rate is None else repr(c.rate)) for c in changes)
    write_text(out / PLOT_NAME, plot(changes, groups) + "\n")
    details = {"base": config.base, "tuned": config.tuned, "groups": [group.as_json() for group in groups]}
    write_json(out / SUMMARY_NAME, details)
    return Dataset("weight_change", out.path, Counts(len(changes), len(changes)), details)


def compare_weights(config: WeightChangeConfig, progress: Progress) -> tuple[list[ParameterChange], list[GroupChange]]:
    """Every parameter's change and every group's; raises ConfigError when the two are of different shapes."""
    from cdkit.evaluation.weight_change import group_changes, parameter_changes

    changes = parameter_changes(_pairs(config, progress))
    return changes, group_changes(changes)


def plot(changes: list[ParameterChange], groups: list[GroupChange]) -> str:
    """An SVG: one dot per parameter that moved, one row per group, a bar at their mean."""
    from cdkit.evaluation.charts import Strip, strip_chart

    rows = [
        Strip(
            group.group,
            [change.rate for change in changes if change.group == group.group and change.rate is not None],
        )
        for group in groups
    ]
    return strip_chart(rows, x_label="rate of change ‖θ′ − θ‖ / ‖θ‖", title="Rate of change of weights by group")


def _pairs(config: WeightChangeConfig, progress: Progress) -> Iterator[tuple[str, str, Tensor, Tensor]]:
    """(name, group, base, tuned) of every parameter."""
    from cdkit.evaluation.weight_change import group_of

    loaded: dict[str, Checkpoint] = {}
    own_base = load_delta(config.base).base if _is_delta(config.base) else "embedded"
    base = load_checkpoint(config.base, own_base, config.device, progress, loaded)
    tuned = load_checkpoint(config.tuned, config.base, config.device, progress, loaded)
    for part in ("unet", "text_encoder"):
        one, other = base.get(part, {}), tuned.get(part, {})
        shared = [name for name in one if name in other]
        if part == "unet" and (set(one) != set(other) or any(one[n].shape != other[n].shape for n in shared)):
            raise ConfigError(
                f"{config.base} and {config.tuned} are not the same kind of model: their U-Nets differ in shape.",
                hint="Compare a base model with a delta or a fine-tuned copy of it.",
            )
        for name in shared:
            if one[name].shape == other[name].shape:
                yield name, group_of(name) if part == "unet" else "text encoder", one[name], other[name]


def load_checkpoint(
    spec: str, default_base: str, device: str | None, progress: Progress, loaded: dict[str, Checkpoint] | None = None
) -> Checkpoint:
    """Parameters in fp32 by part: a pipeline's U-Net and text encoder; a delta's U-Net on its base.

    loaded: base models read before, which are not read again.
    """
    loaded = {} if loaded is None else loaded
    if not _is_delta(spec):
        if spec not in loaded:
            progress.note(f"reading {spec}")
            pipeline = load_base_model(spec, device=choose_device(device or "cpu"))
            loaded[spec] = {part: _parameters(getattr(pipeline, part, None)) for part in ("unet", "text_encoder")}
        return loaded[spec]
    delta = load_delta(spec)
    base = default_base if not _is_delta(default_base) else load_delta(default_base).base
    found = dict(load_checkpoint(base, "embedded", device, progress, loaded)["unet"])
    for name, change in delta.changes.items():
        if name not in found or tuple(found[name].shape) != tuple(change.shape):
            raise ConfigError(f"The delta {spec} does not fit {base}: {name}.", hint="Give the base it was made on.")
        found[name] = found[name] + matrix(change).to(found[name].device)
    return {"unet": found}


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
