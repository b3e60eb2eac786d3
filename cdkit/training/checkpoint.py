"""Checkpoints: trained parameters, optimizer state and position, as safetensors and JSON, the newest two kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.shards import read_tensors, write_tensors
from cdkit.core.storage import atomic_path, flush_names, read_json, write_json
from cdkit.training.step_names import newest_first, step_name

CHECKPOINTS = "checkpoints"
KEPT = 2
STATE_NAME = "state.safetensors"
POSITION_NAME = "position.json"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in a folder."""

    folder: Path

    def save(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, Any],
    ) -> None:
        """Write the state after `step` steps, then delete all but the newest two; the threads are noted beside it."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            state = optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
        target = self.folder / step_name(step)
        # One that could not be read back stands in the way.
        shutil.rmtree(target, ignore_errors=True)
        with atomic_path(target) as temporary:
            temporary.mkdir(parents=True)
            write_tensors(temporary / STATE_NAME, tensors, {})
            write_json(temporary / POSITION_NAME, {"step": step, "threads": torch.get_num_threads(), **facts})
        # The deletion of an older one must not be on the disk before the new one's name is.
        flush_names(self.folder, below=False)
        self.prune(step)

    def restore(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, dict[str, Any]]:
        """Put the newest checkpoint that can be read back; returns its step (0: none) and its facts."""
        for _, path in newest_first(self.folder):
            try:
                facts = read_json(path / POSITION_NAME)
                step = int(facts["step"])
                tensors = _read(path / STATE_NAME, parameters)
            except (CdkitError, KeyError, TypeError, ValueError):
                continue
            _fill(parameters, optimizer, tensors)
            return step, facts
        return 0, {}

    def prune(self, newest: int) -> None:
        """Delete all but the newest two of those up to a step; a killed run may not have come to that."""
        known = [path for step, path in newest_first(self.folder) if step <= newest]
        for old in known[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def threads(self) -> int | None:
        """How many threads the newest checkpoint that says so was made on; None: there is none."""
        for _, path in newest_first(self.folder):
            with suppress(CdkitError, KeyError, TypeError, ValueError):
                return int(read_json(path / POSITION_NAME)["threads"])
        return None


def _read(path: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    tensors = read_tensors(path)[1]
    wanted = {f"{part}.{name}" for part in ("parameter", *_MOMENTS) for name in parameters}
    if wanted != set(tensors) or any(
        tensors[f"parameter.{name}"].shape != parameter.shape for name, parameter in parameters.items()
    ):
        raise InputError(f"{path} is of another run.")
    return tensors


def _fill(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[f"parameter.{name}"])
        state = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in ("exp_avg", "exp_avg_sq")}
        # Where AdamW keeps its step count depends on whether it runs fused on a GPU.
        on_device = bool(optimizer.defaults.get("fused"))
        step = tensors[f"step.{name}"]
        optimizer.state[parameter] = {"step": step.to(parameter.device) if on_device else step, **state}
