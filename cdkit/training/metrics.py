"""metrics.csv: one row per step, continued exactly when a run resumes."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.storage import write_text

if TYPE_CHECKING:
    import torch

METRICS_NAME = "metrics.csv"
COLUMNS = ("step", "loss", "target_loss", "regularization_loss", "seconds")


@dataclass
class Metrics:
    """Writes the losses of each step. interval: how many steps may wait, so that a GPU is not asked every step.

    files: the names of what a step, counted from 1, shows.
    """

    path: Path
    interval: int = 1
    log: Callable[[int, Mapping[str, float]], None] = lambda step, values: None
    files: Callable[[int], Sequence[str]] = lambda step: ()
    rows: list[dict[str, float | None]] = field(default_factory=list)
    _waiting: list[tuple[int, torch.Tensor, float]] = field(default_factory=list)
    _clock: float = field(default_factory=time.monotonic)

    def resume(self, step: int) -> None:
        """Keep what an earlier run wrote up to `step`, and count its seconds."""
        self.rows = [row for row in read_metrics(self.path) if (row["step"] or 0) <= step] if step else []
        write_text(self.path, _text(self.rows, heading=True))
        self._clock = time.monotonic() - self.seconds

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last row."""
        return (self.rows[-1]["seconds"] or 0.0) if self.rows else 0.0

    def add(self, step: int, sums: torch.Tensor) -> None:
        """Note a step's (5,) sums: weighted loss, its samples, target loss, its samples, regularization loss.

        Raises ConfigError, now or when it is looked at, when the loss is not finite.
        """
        self._waiting.append((step, sums.detach(), time.monotonic() - self._clock))
        if len(self._waiting) >= self.interval:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        written: list[dict[str, float | None]] = []
        for step, sums, seconds in self._waiting:
            loss, samples, target, targets, regularization = sums.tolist()
            if not math.isfinite(loss):
                self._waiting.clear()
                self._append(written)
                shown = ", ".join(self.files(step))
                raise ConfigError(
                    f"The loss is {'NaN' if math.isnan(loss) else 'infinite'} at step {step}"
                    f"{f', which shows {shown}' if shown else ''}.",
                    hint="Lower --learning-rate and --token-learning-rate; with fp16 try --precision bf16 or no. "
                    "Then start anew with --force.",
                )
            images = samples - targets
            row: dict[str, float | None] = {
                "step": step,
                "loss": loss / samples,
                "target_loss": target / targets if targets else None,
                "regularization_loss": regularization / images if images else None,
                "seconds": round(seconds, 3),
            }
            written.append(row)
            self.log(step, {name: value for name, value in row.items() if value is not None and name != "step"})
        self._waiting.clear()
        self._append(written)

    def _append(self, rows: list[dict[str, float | None]]) -> None:
        self.rows += rows
        with self.path.open("a", encoding="utf-8", newline="") as handle:
            handle.write(_text(rows, heading=False))

    def mean_loss(self, last: int) -> float | None:
        """The mean loss of the last rows; None before the first."""
        losses = [row["loss"] or 0.0 for row in self.rows[-last:]]
        return sum(losses) / len(losses) if losses else None


def _text(rows: list[dict[str, float | None]], *, heading: bool) -> str:
    target = io.StringIO()
    writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
    if heading:
        writer.writeheader()
    # repr of a float is exact: a resumed run's file equals an uninterrupted one's.
    writer.writerows(rows)
    return target.getvalue()


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The whole rows of a file, in order; raises InputError when it cannot be read."""
    try:
        with path.open(encoding="utf-8", newline="") as handle:
            lines = [row for row in csv.DictReader(handle) if None not in row.values()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Start anew with --force.") from error
    rows = []
    for line in lines:
        row: dict[str, float | None] = {name: float(line[name]) if line[name] else None for name in COLUMNS}
        row["step"] = int(line["step"])
        rows.append(row)
    return rows
