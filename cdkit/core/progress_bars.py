"""Bars of the work in progress: there from the first task on, gone with it, and silent on what is over soon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdkit.core.task_rate import TaskRate

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass
class Bar:
    """One task's bar, which shows itself once the task has gone on for so many seconds."""

    bars: Progress
    identity: TaskID
    rate: TaskRate
    quiet_seconds: float

    def advance(self, amount: float = 1) -> None:
        self.rate.done += amount
        shown = self.rate.elapsed > self.quiet_seconds
        self.bars.update(
            self.identity, advance=amount, speed=self.rate.speed(), share=self.rate.share(), visible=shown
        )


class ProgressBars:
    """rich's bars, one for each of the tasks within one another.

    make: bars that are not started; their columns find `speed` and `share` among a task's fields.
    """

    def __init__(self, make: Callable[[], Progress], quiet_seconds: float) -> None:
        self._make, self._quiet_seconds = make, quiet_seconds
        self._bars: Progress | None = None

    @contextmanager
    def task(self, rate: TaskRate) -> Iterator[Bar]:
        """A bar while the block runs."""
        is_first = self._bars is None
        bars = self._bars = self._bars or self._make()
        if is_first:
            bars.start()
        identity = bars.add_task(rate.label, total=rate.total, visible=False, speed="", share="")
        try:
            yield Bar(bars, identity, rate, self._quiet_seconds)
        finally:
            bars.remove_task(identity)
            if is_first:
                bars.stop()
                self._bars = None
