"""Progress on stderr: bars with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from cdkit.cli.output import Output, duration
from cdkit.protocols import Progress, Task

QUIET_SECONDS = 2.0  # nothing is said about work that is over sooner
LINE_SECONDS = 10.0


@dataclass
class _Rate:
    """Counts progress and says how fast it goes."""

    label: str
    total: float | None
    unit: str
    done: float = 0
    started: float = field(default_factory=time.monotonic)

    def rate(self) -> str:
        elapsed = time.monotonic() - self.started
        speed = self.done / elapsed if elapsed > 0 else 0
        number = f"{speed:,.0f}" if speed >= 100 else f"{speed:.2g}"
        return f"{number} {self.unit}/s" if self.unit else f"{number}/s"

    def line(self) -> str:
        elapsed = time.monotonic() - self.started
        of = f" of {self.total:,.0f}" if self.total else ""
        left = ""
        if self.total and 0 < self.done < self.total:
            left = f", {duration(elapsed * (self.total - self.done) / self.done)} left"
        return f"{self.label}: {self.done:,.0f}{of} {self.unit}, {self.rate()}{left}".replace("  ", " ")


@dataclass
class _BarTask:
    rate: _Rate
    bars: RichProgress
    identity: TaskID

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        shown = time.monotonic() - self.rate.started > QUIET_SECONDS
        self.bars.update(self.identity, advance=amount, rate=self.rate.rate(), visible=shown)


@dataclass
class _LineTask:
    rate: _Rate
    output: Output
    spoken: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        if time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken = time.monotonic()
            self.output.note(self.rate.line())


class TerminalProgress:
    """Progress for the command line; human format only, so that machine-read runs stay silent."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._bars: RichProgress | None = None

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        rate = _Rate(label, total, unit)
        if not self._console.is_terminal:
            yield _LineTask(rate, self._output)
            return
        bars, owner = (self._bars, False) if self._bars else (self._start(), True)
        identity = bars.add_task(label, total=total, rate="", visible=False)
        try:
            yield _BarTask(rate, bars, identity)
        finally:
            bars.remove_task(identity)
            if owner:
                bars.stop()
                self._bars = None
            if time.monotonic() - rate.started > QUIET_SECONDS:
                self._output.note(f"{label}: {rate.done:,.0f} {unit} in {duration(time.monotonic() - rate.started)}")

    def note(self, message: str) -> None:
        self._output.note(message)

    def _start(self) -> RichProgress:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bars.start()
        return self._bars


def progress_for(output: Output) -> Progress:
    """The progress reporter that suits an output format."""
    return TerminalProgress(output)
