"""What the training parts share: checkpoints that survive a kill, a log of JSON lines, rates, randomness by step."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.json_text import json_text


@dataclass
class TrainingLog:
    """Appends JSON lines to a file and hands each to `report` (the entry point prints it)."""

    path: Path
    report: Callable[[str], None] = lambda line: None
    started: float = field(default_factory=time.monotonic)

    def write(self, part: str, step: int, **figures: float) -> None:
        """One line: part, step, seconds since this process began, figures."""
        row = {"part": part, "step": step, "seconds": round(time.monotonic() - self.started, 1)}
        row |= {name: round(float(value), 5) for name, value in figures.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json_text(row) + "\n")
        self.report(json_text(row))


@dataclass(frozen=True)
class Checkpoint:
    """One file of tensors and numbers, replaced atomically; read with weights_only, so it can hold no code."""

    path: Path

    def load(self, device: str = "cpu") -> dict[str, Any] | None:
        """What was saved, or None."""
        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write and rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 50, constant_share: float = 0.3) -> float:
    """A short warm-up, a constant stretch, then a cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = max(0.0, (step / max(1, steps) - constant_share) / (1 - constant_share))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group, times the group's own `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def step_generators(seed: int, step: int, device: str) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one step depends on seed and step alone, so a resumed run goes on as if never stopped."""
    rng = np.random.Generator(np.random.PCG64([seed, step]))
    return rng, torch.Generator(device=device).manual_seed(seed * 1_000_003 + step)


def to_unit_range(pictures: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (n, 32, 32, 3) to float (n, 3, 32, 32) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
