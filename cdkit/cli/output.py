"""What commands print: data on stdout in one of three formats, words on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from cdkit.core.errors import CdkitError
from cdkit.core.formatting import json_text, without_credentials

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
