"""What commands print: data on stdout in one of three formats, words and progress on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from cdkit.core.errors import CdkitError
from cdkit.core.formatting import duration_text, json_text, without_credentials
from cdkit.core.protocols import Task

Format = Literal["human", "json", "quiet"]


@dataclass(frozen=True)
class Output:
    """One command's output. human: tables and words; json: one object; quiet: only the essential value."""

    format: Format = "human"

    @cached_property
    def words(self) -> Console:
        """The console for everything that is not data: one, which keeps what is said apart from what it draws."""
        return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, quiet=self.format == "quiet")

    def result(self, data: Mapping[str, Any], *, human: Callable[[Console], None], quiet: object = "") -> None:
        """Print the command's one result: `data` as JSON, what `human` draws, or just `quiet`."""
        if self.format == "json":
            print(json_text(data))
        elif self.format == "human":
            human(data_console())
        elif str(quiet):
            print(quiet)
        # Now, so that a result nobody got is what the command ends with.
        sys.stdout.flush()

    def note(self, message: str) -> None:
        """One line the user should know. A terminal gets it broken between words, but for commands to be pasted."""
        broken = self.words.is_terminal and "cdkit " not in message
        self.words.print(without_credentials(message), markup=False, soft_wrap=not broken)

    def hint(self, message: str) -> None:
        """What to do next."""
        self.words.print(f"→ {without_credentials(message)}", markup=False, style="cyan")

    def error(self, error: CdkitError) -> None:
        """Report an error: message and hint on stderr; with JSON also one object on stdout."""
        message, hint = without_credentials(error.message), without_credentials(error.hint)
        console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        console.print("Error:", style="bold red", end=" ")
        console.print(message, markup=False)
        if hint:
            console.print("Hint:", style="bold", end="  ")
            console.print(hint, markup=False)
        # Last, as it may fail: the words are out by then.
        if self.format == "json":
            print(json_text({"error": {"code": error.code, "message": message, "hint": hint}}))


@dataclass
class Session:
    """What the outermost handler needs to know of the command under way: how to report its errors."""

    output: Output
    debug: bool = False


SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


def data_console() -> Console:
    """The console for data; a pipe gets full-width lines, so that nothing is cut off."""
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 200)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> Table:
    """A plain table; numbers are right-aligned and grouped."""
    drawn = Table(title=title or None, box=None, header_style="bold", pad_edge=False, title_justify="left")
    for column, heading in enumerate(headings):
        numeric = bool(rows) and all(isinstance(row[column], int | float) for row in rows)
        drawn.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(_cell(value) for value in row))
    return drawn


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value).replace("[", r"\[")


QUIET_SECONDS = 2.0  # nothing is said about work that is over sooner
LINE_SECONDS = 10.0
EARLIEST_SHARE = 0.01  # of the work: by less, a rate is that of the start
LABEL_SHARE = 3  # of a terminal's width, a bar's label takes so many parts in one at most


@dataclass
class _Rate:
    """Counts progress and says how fast it goes."""

    label: str
    total: float | None
    unit: str
    done: float = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def rate(self) -> str:
        speed = self.done / self.elapsed if self.elapsed > 0 else 0
        number = f"{speed:,.0f}" if speed >= 100 else f"{speed:.2g}"
        return f"{number} {self.unit}/s" if self.unit else f"{number}/s"

    def share(self) -> str:
        return f"{self.done / self.total:.0%}" if self.total else f"{self.done:,.0f}"

    def line(self) -> str:
        of = f" of {self.total:,.0f}" if self.total else ""
        left = ""
        if self.total and EARLIEST_SHARE * self.total <= self.done < self.total and self.done:
            left = f", {duration_text(self.elapsed * (self.total - self.done) / self.done)} left"
        return f"{self.label}: {self.done:,.0f}{of} {self.unit}, {self.rate()}{left}".replace("  ", " ")

    def summary(self) -> str:
        return f"{self.label}: {self.done:,.0f} {self.unit} in {duration_text(self.elapsed)}".replace("  ", " ")


@dataclass
class _BarTask:
    rate: _Rate
    bars: Bars
    identity: TaskID

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        shown = self.rate.elapsed > QUIET_SECONDS
        self.bars.update(self.identity, advance=amount, rate=self.rate.rate(), share=self.rate.share(), visible=shown)


@dataclass
class _LineTask:
    rate: _Rate
    output: Output
    whole: _Whole
    spoken: float = field(default_factory=time.monotonic)

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        if time.monotonic() - self.spoken >= LINE_SECONDS:
            self.spoken = time.monotonic()
            # Of a run that is known in part only, the line says what is known.
            left = f"; {self.whole.left} of the run" if self.whole.left.startswith("about") else ""
            self.output.note(f"{self.rate.line()}{left}")


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


class TerminalProgress:
    """Progress for the command line. What is said while bars are drawn is printed above them by who draws them."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._console = output.words
        self._bars: Bars | None = None
        self._whole = _Whole()

    def part_of(self, place: str, left: str) -> None:
        """Say what the work in progress is a part of, and what is left of that; empty where that is not known."""
        self._whole.place, self._whole.left = place, left

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        rate = _Rate(label, total, unit)
        if not draws_bars(self._console):
            yield _LineTask(rate, self._output, self._whole)
            return
        bars, is_first = (self._bars, False) if self._bars else (self._start(), True)
        identity = bars.add_task(label, total=total, rate="", share="", visible=False)
        try:
            yield _BarTask(rate, bars, identity)
        finally:
            bars.remove_task(identity)
            if is_first:
                bars.stop()
                self._bars = None
            if rate.elapsed > QUIET_SECONDS:
                self.note(rate.summary())

    def note(self, message: str) -> None:
        self._output.note(message)

    def _start(self) -> Bars:
        label = Column(no_wrap=True, overflow="ellipsis", max_width=self._console.width // LABEL_SHARE)
        self._bars = _WholeBars(
            self._whole,
            TextColumn("{task.description}", markup=False, table_column=label),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[share]}", markup=False, justify="right"),
            TextColumn("{task.fields[rate]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            expand=True,
        )
        self._bars.start()
        return self._bars


def draws_bars(console: Console) -> bool:
    """Whether bars can be drawn: on a terminal that can move its cursor, and where words are wanted."""
    return sys.stderr.isatty() and console.is_interactive and not console.is_dumb_terminal and not console.quiet


def progress_for(output: Output) -> TerminalProgress:
    """The progress reporter that suits an output format."""
    return TerminalProgress(output)
