"""Runs tiny trainings for the tests of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cdkit.core.config import parse_config
from cdkit.core.protocols import SilentProgress
from cdkit.execute import Result, execute
from cdkit.training.config import TrainConfig

# Vocabulary entries of the tiny tokenizer.
INITIALIZERS = ("cat", "dog", "of", "photo", "x")


@dataclass(frozen=True)
class Material:
    """Folders to train on."""

    root: Path

    def config(self, **values: Any) -> TrainConfig:
        """One concept with regularization, three small steps, unless `values` say otherwise."""
        given = {
            "base": str(self.root / "base"),
            "concepts": {"cat": str(self.root / "cat")},
            "regularization": {"cat": str(self.root / "images")},
            "steps": 3,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "device": "cpu",
            **values,
        }
        method = given.get("method", "custom-diffusion")
        if "token" not in given and not given.get("no_token") and method != "dreambooth":
            named = zip(given["concepts"], INITIALIZERS, strict=False)
            given["token"] = {name: f"<new{n}>={word}" for n, (name, word) in enumerate(named, 1)}
        return parse_config(TrainConfig, given)


class Interrupted(Exception):
    """Stands for the kill of a process."""


class StopAfter(SilentProgress):
    """Progress that ends the run with Interrupted after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, label: str, total: float | None, *, unit: str = "") -> Any:
        return _StoppingTask(self) if unit == "steps" else super().task(label, total, unit=unit)


class _StoppingTask:
    def __init__(self, progress: StopAfter) -> None:
        self.progress = progress

    def __enter__(self) -> _StoppingTask:
        return self

    def __exit__(self, *reason: object) -> None:
        return None

    def advance(self, amount: float = 1) -> None:
        self.progress.left -= int(amount)
        if amount and self.progress.left <= 0:
            raise Interrupted


def run(config: TrainConfig, out: Path, **options: Any) -> Result:
    """Train with one thread: several would only wait for each other at this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return execute("train", config, out, **options)
    finally:
        torch.set_num_threads(before)


def delta_tensors(out: Path) -> dict[str, torch.Tensor]:
    """The delta's raw tensors."""
    return dict(load_file(out / "delta.safetensors"))


def losses(out: Path) -> list[str]:
    """The rows of metrics.csv without their seconds."""
    return [line.rsplit(",", 1)[0] for line in (out / "metrics.csv").read_text().splitlines()]


def assert_same_training(one: Path, other: Path, base: str) -> None:
    """Both runs made the same weights to a relative 1e-5 of each tensor's norm, and the same losses.

    Not element by element: Adam divides a gradient by its own size, so that of one that is almost zero only the
    rounding is left.
    """
    from cdkit.deltas.base_model import load_base_model

    weights = dict(load_base_model(base, device=torch.device("cpu")).unet.named_parameters())
    first, second = delta_tensors(one), delta_tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        whole = value + weights[name.removeprefix("unet.")] if name.startswith("unet.") else value
        assert (value - second[name]).norm() <= 1e-5 * whole.norm(), name
    rows = [[float(cell) for line in losses(out)[1:] for cell in line.split(",") if cell] for out in (one, other)]
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]), rtol=1e-5, atol=0)
