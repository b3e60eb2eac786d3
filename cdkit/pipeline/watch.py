"""A run as it goes on: which stage is where, what it is doing, what was said, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cdkit.core.errors import CdkitError
from cdkit.core.formatting import without_credentials
from cdkit.core.protocols import Progress, Task
from cdkit.core.task_rate import TaskRate
from cdkit.pipeline.pace import Pace, Running, TimeLeft
from cdkit.pipeline.plan import Planned

StageState = Literal["waiting", "cached", "running", "done", "partial", "failed", "interrupted"]
# A rate over less is that of the start.
LEAST_SECONDS = 2.0
SECONDS_BETWEEN_UPDATES = 0.5
MOST_NOTES = 50


@dataclass
class StageStatus:
    """One stage of a run. doing: its task and how far that is; notes: what it said."""

    planned: Planned
    state: StageState = "waiting"
    seconds: float | None = None
    doing: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.planned.step.name


@dataclass
class RunStatus:
    """The whole run. ended: whether nothing goes on any more; problem and hint: of what ended it early."""

    pipeline: str
    folder: Path
    stages: list[StageStatus]
    ended: bool = False
    seconds: float = 0.0
    problem: str = ""
    hint: str = ""
    left: TimeLeft = field(default_factory=lambda: TimeLeft(0.0))

    @property
    def current(self) -> int | None:
        """The place of the stage that runs, or that ended the run; None before the first and after the last."""
        states = ("running", "failed", "interrupted")
        return next((place for place, stage in enumerate(self.stages) if stage.state in states), None)

    def place(self) -> str:
        """`[4/18] star-tuned`; nothing between stages."""
        current = self.current
        return "" if current is None else f"[{current + 1}/{len(self.stages)}] {self.stages[current].name}"


class RunWatch:
    """Keeps the status of a run, and shows it to whoever asked for it as it changes.

    show: called with the status when a stage begins or ends, and now and then in between; forced: for what must be
    seen, not only when time has passed.
    """

    def __init__(
        self, pipeline: str, folder: Path, planned: Sequence[Planned], show: Callable[[RunStatus, bool], None]
    ) -> None:
        self.status = RunStatus(pipeline, folder, [StageStatus(entry) for entry in planned])
        self.pace = Pace()
        self._show, self._tasks = show, list[TaskRate]()
        self._began = self._stage_began = time.monotonic()
        self._shown = 0.0
        for entry in planned:
            self.pace.learn_earlier(entry.step, entry.out)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The run: however it ends, that is shown last."""
        try:
            yield
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self.status.ended = True
            self._update(forced=True)

    def begin(self, place: int) -> None:
        """A stage runs from here on."""
        stage = self.status.stages[place]
        self._tasks.clear()
        self._stage_began = time.monotonic()
        stage.state = "running"
        self._update(forced=stage.planned.state != "cached")

    def end(self, place: int, state: StageState, *, whole: bool) -> None:
        """A stage has ended well; whole: no part of it was there already, so that its time is that of its work."""
        stage = self.status.stages[place]
        stage.state, stage.doing = state, ""
        stage.seconds = time.monotonic() - self._stage_began
        if state == "done" and whole:
            self.pace.learn(stage.planned.step, stage.seconds)
        self._update(forced=state != "cached")

    def progress(self, inner: Progress) -> Progress:
        """Progress that this watch hears of, passed on to `inner`."""
        return _HeardProgress(self, inner)

    def note(self, message: str) -> None:
        """Keep what the stage in progress said."""
        current = self.status.current
        if current is not None and len(self.status.stages[current].notes) < MOST_NOTES:
            self.status.stages[current].notes.append(without_credentials(message))

    def begin_task(self, task: TaskRate) -> None:
        self._tasks.append(task)
        self._update()

    def end_task(self, task: TaskRate) -> None:
        self._tasks = [other for other in self._tasks if other is not task]
        self._update()

    def advanced(self) -> None:
        if time.monotonic() - self._shown >= SECONDS_BETWEEN_UPDATES:
            self._update()

    def _update(self, *, forced: bool = False) -> None:
        self._shown = time.monotonic()
        status, current = self.status, self.status.current
        status.seconds = self._shown - self._began
        running = None
        if current is not None and not status.ended:
            stage = status.stages[current]
            stage.seconds = self._shown - self._stage_began
            # Of tasks within one another, the outermost says how far the stage is.
            task = self._tasks[0] if self._tasks else None
            stage.doing = task.text() if task is not None else ""
            left = task.left() if task is not None and task.elapsed >= LEAST_SECONDS else None
            running = Running(stage.planned.step, stage.seconds, left)
        waiting = [stage.planned.step for stage in status.stages if self._is_to_be_made(stage)]
        status.left = TimeLeft(0.0) if status.ended else self.pace.left(waiting, running)
        self._show(status, forced)

    @staticmethod
    def _is_to_be_made(stage: StageStatus) -> bool:
        return stage.state == "waiting" and stage.planned.state != "cached"

    def _failed(self, error: BaseException) -> None:
        status, current = self.status, self.status.current
        if isinstance(error, KeyboardInterrupt):
            status.problem, status.hint = "Interrupted.", "Run the same command to continue: finished work is kept."
        elif isinstance(error, CdkitError):
            status.problem = without_credentials(error.message)
            status.hint = without_credentials(error.hint)
        else:
            status.problem = without_credentials(f"{type(error).__name__}: {error}")
        if current is not None:
            stage = status.stages[current]
            stage.state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            stage.seconds = time.monotonic() - self._stage_began


class _HeardTask:
    def __init__(self, watch: RunWatch, heard: TaskRate, inner: Task) -> None:
        self._watch, self._heard, self._inner = watch, heard, inner

    def advance(self, amount: float = 1) -> None:
        self._heard.done += amount
        self._inner.advance(amount)
        self._watch.advanced()


class _HeardProgress:
    def __init__(self, watch: RunWatch, inner: Progress) -> None:
        self._watch, self._inner = watch, inner

    @contextmanager
    def task(self, label: str, total: float | None, *, unit: str = "") -> Iterator[Task]:
        heard = TaskRate(label, total, unit)
        self._watch.begin_task(heard)
        try:
            with self._inner.task(label, total, unit=unit) as task:
                yield _HeardTask(self._watch, heard, task)
        finally:
            self._watch.end_task(heard)

    def note(self, message: str) -> None:
        self._watch.note(message)
        self._inner.note(message)
