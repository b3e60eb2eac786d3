"""Progress on stderr: bars on a terminal, a line now and then elsewhere, and what the work is a part of."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from cdkit.cli.output import Output
from cdkit.core.formatting import duration_text
from cdkit.core.progress_bars import ProgressBars
from cdkit.core.protocols import Task
from cdkit.core.task_rate import TaskRate

QUIET_SECONDS = 2.0  # nothing is said about work that is over sooner
LINE_SECONDS = 10.0
LABEL_SHARE = 3  # of a terminal's width, a bar's label takes so many parts in one at most


class TerminalProgress:
    """Progress for the command line. What is said while bars are drawn is printed above them by who draws them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._whole = _Whole()
        self._bars = ProgressBars(self._bars_of_the_whole, QUIET_SECONDS)

    def part_of(self, place: str, left: str) -> None:
        """Say what the work in progress is a part of, and what is left of that; empty where that is not known."""
        self._whole.place, self._whole.left = place, left

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        rate = TaskRate(label, total, unit)
        if not draws_bars(self._output.words):
            yield _LineTask(rate, self._output, self._whole)
            return
        try:
            with self._bars.task(rate) as bar:
                yield bar
        finally:
            if rate.elapsed > QUIET_SECONDS:
                self.note(f"{label}: {rate.done:,.0f} {unit} in {duration_text(rate.elapsed)}".replace("  ", " "))

    def note(self, message: str) -> None:
        self._output.note(message)

    def _bars_of_the_whole(self) -> Bars:
        console = self._output.words
        label = Column(no_wrap=True, overflow="ellipsis", max_width=console.width // LABEL_SHARE)
        return _WholeBars(
            self._whole,
            TextColumn("{task.description}", markup=False, table_column=label),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[share]}", markup=False, justify="right"),
            TextColumn("{task.fields[speed]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            expand=True,
        )


def draws_bars(console: Console) -> bool:
    """Whether bars can be drawn: on a terminal that can move its cursor, and where words are wanted."""
    return sys.stderr.isatty() and console.is_interactive and not console.is_dumb_terminal and not console.quiet


@dataclass
class _Whole:
    """What the work in progress is a part of: `[4/18] star-tuned`, and `about 3 min left` of all of it."""

    place: str = ""
    left: str = ""

    def line(self) -> str:
        return f"{self.place}: {self.left} of the run" if self.left else self.place


class _WholeBars(Bars):
    """Bars under a line that says what they are a part of, where they are one."""

    def __init__(self, whole: _Whole, *columns: Any, **options: Any) -> None:
        self._whole = whole
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[Any]:
        line = self._whole.line()
        if line and any(task.visible for task in self.tasks):
            yield Text(line, no_wrap=True, overflow="ellipsis", style="bold")
        yield from super().get_renderables()


@dataclass
class _LineTask:
    """A task that says a line every few seconds."""

    rate: TaskRate
    output: Output
    whole: _Whole
    spoken: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        if time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken = time.monotonic()
            left = self.rate.left()
            of_task = f", {duration_text(left)} left" if left else ""
            # Of a run that is known in part only, the line says what is known.
            of_run = f"; {self.whole.left} of the run" if self.whole.left.startswith("about") else ""
            self.output.note(f"{self.rate.text()}, {self.rate.speed()}{of_task}{of_run}")
