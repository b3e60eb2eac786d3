"""Progress of a call: a bar where somebody looks, the caller's own function, or nothing; and what was said."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import without_credentials
from cdkit.core.progress_bars import ProgressBars
from cdkit.core.protocols import Progress, SilentProgress, Task
from cdkit.core.task_rate import TaskRate

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

# Nothing is shown of work that is over sooner.
QUIET_SECONDS = 1.0


@dataclass(frozen=True)
class ProgressEvent:
    """How far a call is: `done` of `total` (None: unknown) units of the work called `label`; or a note alone."""

    label: str
    done: float
    total: float | None
    unit: str = ""
    note: str = ""


ProgressCallback = Callable[[ProgressEvent], None]


class Listener:
    """A call's progress: keeps the notes, and passes all on to a bar or to the caller's function."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self.notes: list[str] = []

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        with self._shown.task(label, total, unit=unit) as task:
            yield task

    def note(self, message: str) -> None:
        plain = without_credentials(message)
        self.notes.append(plain)
        self._shown.note(plain)


def listener(progress: ProgressCallback | bool | None) -> Listener:
    """The progress of one call. None: a bar in a terminal or a notebook; True, False: a bar, nothing.

    Raises ConfigError for what is none of these and cannot be called.
    """
    if callable(progress):
        return Listener(_Told(progress))
    if not (progress is None or isinstance(progress, bool)):
        raise ConfigError(
            f"progress: True, False, or a function of an event (got {progress!r}).",
            hint="Example: progress=lambda event: print(event.label, event.done)",
        )
    return Listener(_Drawn() if progress or (progress is None and _somebody_looks()) else SilentProgress())


def _somebody_looks() -> bool:
    return in_notebook() or (hasattr(sys, "ps1") and sys.stderr.isatty())


def in_notebook() -> bool:
    """Whether this is a notebook's process."""
    loaded = sys.modules.get("IPython")
    shell = loaded.get_ipython() if loaded is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@dataclass
class _ToldTask:
    told: ProgressCallback
    label: str
    total: float | None
    unit: str
    done: float = 0

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self.told(ProgressEvent(self.label, self.done, self.total, self.unit))


class _Told:
    """Calls the caller's function at the start of work, at every step, and for notes."""

    def __init__(self, told: ProgressCallback) -> None:
        self._told = told

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        self._told(ProgressEvent(label, 0, total, unit))
        yield _ToldTask(self._told, label, total, unit)

    def note(self, message: str) -> None:
        self._told(ProgressEvent("", 0, None, note=message))


class _Drawn:
    """Bars, which a notebook shows, too; they go when the work is done. Notes stay in the result alone."""

    def __init__(self) -> None:
        self._bars = ProgressBars(_bars, QUIET_SECONDS)

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        with self._bars.task(TaskRate(label, total, unit)) as bar:
            yield bar

    def note(self, message: str) -> None:
        return None


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=not in_notebook()),
        transient=True,
    )
