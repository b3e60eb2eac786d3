"""What every phase shares: its length, learning rate, checkpoints and log, and steps as CUDA graphs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cdkit.core.formatting import json_text

# Between looks at the clock, which wait for the device; until the first log line with a checkpoint; and between these.
STEPS_PER_LOOK = 10
SECONDS_TO_FIRST_CHECKPOINT = 2.0
SECONDS_PER_CHECKPOINT = 15.0


@dataclass(frozen=True)
class Length:
    """How long a phase trains: a number of steps, or seconds when there is none."""

    steps: int | None = None
    seconds: float = 0.0

    def share(self, step: int, seconds: float) -> float:
        """How much of the phase is over, 0 to 1: what the learning rate follows."""
        if self.steps is not None:
            return min(1.0, step / max(1, self.steps))
        return min(1.0, seconds / max(1e-3, self.seconds))


class Trainee(Protocol):
    """One phase: what it trains and by which step."""

    optimizer: torch.optim.Optimizer
    graphed: bool

    def step(self) -> dict[str, torch.Tensor]:
        """Draws a batch on the device and moves the weights; never waits for the device. Losses by name."""

    def after_step(self, step: int) -> None:
        """What stands outside the graph, such as a weight average."""

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs but the optimizer."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes a checkpoint's state."""

    def checked(self) -> dict[str, float]:
        """Figures on scenes that training does not see."""


@dataclass
class TrainingLog:
    """Appends JSON lines to a file and hands each to `report` (the entry point prints it)."""

    path: Path
    report: Callable[[str], None] = lambda line: None
    started: float = field(default_factory=time.monotonic)

    def write(self, part: str, **figures: float | str) -> None:
        """One line: part, seconds since this process began, figures."""
        row: dict[str, Any] = {"part": part, "seconds": round(time.monotonic() - self.started, 1)}
        row |= {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
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


def learning_rate(share: float, peak: float, *, warmup: float = 0.02, constant: float = 0.3) -> float:
    """A short warm-up, a constant stretch, then a cosine to 1 % of the peak, over a phase from 0 to 1."""
    if share < warmup:
        return peak * (0.01 + 0.99 * share / warmup)
    progress = max(0.0, (share - constant) / (1 - constant))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def adamw(parameters: Any, device: str, *, second: float, decay: float) -> torch.optim.Optimizer:
    """AdamW whose rate a CUDA graph reads anew at each step."""
    on_gpu = device.startswith("cuda")
    rate = torch.zeros((), device=device) if on_gpu else 0.0
    return torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, second), weight_decay=decay, fused=True, capturable=on_gpu
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def graphed_step(trainee: Trainee, log: TrainingLog, part: str) -> Callable[[], dict[str, torch.Tensor]]:
    """The trainee's step captured as one CUDA graph, or as it is where capturing fails.

    The steps that warm up move the weights by a rate of 0.
    """
    began = time.monotonic()
    set_learning_rate(trainee.optimizer, 0.0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            trainee.step()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            losses = trainee.step()
    except RuntimeError as error:
        torch.cuda.synchronize()
        log.write(part, graph=f"none: {str(error).splitlines()[0]}")
        return trainee.step
    log.write(part, graph="captured", capture_seconds=time.monotonic() - began)

    def replay() -> dict[str, torch.Tensor]:
        graph.replay()
        return losses

    return replay


def train_phase(
    part: str,
    trainee: Trainee,
    length: Length,
    peak: float,
    checkpoint: Checkpoint,
    log: TrainingLog,
    device: str,
    on_checkpoint: Callable[[], None] = lambda: None,
) -> None:
    """Trains for a length, or goes on from the checkpoint; `length.seconds` are those still to come."""
    step, spent = 0, 0.0
    if (state := checkpoint.load(device)) is not None:
        trainee.restore(state["trainee"])
        trainee.optimizer.load_state_dict(state["optimizer"])
        step, spent = int(state["step"]), float(state["seconds"])
        if state["finished"] and (length.steps is None or step >= length.steps):
            return
    torch.manual_seed(1_000_003 * sum(part.encode()) + step)
    on_gpu, began = device.startswith("cuda"), time.monotonic()
    run = graphed_step(trainee, log, part) if on_gpu and trainee.graphed else trainee.step
    looked = saved = time.monotonic()
    # The schedule is that of the time left once the graph is there.
    length = Length(length.steps, max(1.0, length.seconds - (looked - began)) + spent)
    started = looked - spent
    first, pause = step, SECONDS_TO_FIRST_CHECKPOINT
    while (share := length.share(step, looked - started)) < 1:
        set_learning_rate(trainee.optimizer, learning_rate(share, peak))
        losses = run()
        step += 1
        trainee.after_step(step)
        if on_gpu and step % STEPS_PER_LOOK and step != length.steps:
            continue
        if on_gpu:
            torch.cuda.synchronize()
        looked = time.monotonic()
        over = length.share(step, looked - started) >= 1
        if over or looked - saved > pause:
            figures = {name: float(value.detach()) for name, value in losses.items()} | trainee.checked()
            rate = (step - first) / max(1e-6, looked - started - spent)
            log.write(part, step=step, steps_per_second=rate, **figures)
            state = {"trainee": trainee.state(), "optimizer": trainee.optimizer.state_dict()}
            checkpoint.save(state | {"step": step, "seconds": looked - started, "finished": over})
            on_checkpoint()
            saved, pause = time.monotonic(), SECONDS_PER_CHECKPOINT


def to_unit_range(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 (n, 32, 32, 3) to float (n, 3, 32, 32) in [-1, 1], on the same device."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def on_device(array: np.ndarray, device: str) -> torch.Tensor:
    """A NumPy array as a tensor there; 16-bit token ids become int32, which every device indexes."""
    return torch.from_numpy(array.astype(np.int32) if array.dtype == np.uint16 else array).to(device)
