from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from cdkit.core.progress_bars import ProgressBars
from cdkit.core.task_rate import TaskRate


class Bars(Progress):
    """rich's bars, that remember how often they were started and stopped."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        console = Console(file=io.StringIO(), force_terminal=True)
        super().__init__(TextColumn("{task.description} {task.fields[share]}"), console=console, auto_refresh=False)

    def start(self) -> None:
        self.calls.append("start")
        super().start()

    def stop(self) -> None:
        self.calls.append("stop")
        super().stop()


def test_tasks_within_one_another_share_the_bars_of_the_first() -> None:
    made: list[Bars] = []

    def make() -> Bars:
        made.append(Bars())
        return made[-1]

    bars = ProgressBars(make, quiet_seconds=-1)
    with bars.task(TaskRate("outer", 4)) as outer:
        with bars.task(TaskRate("inner", 2)) as inner:
            inner.advance(1)
            assert [task.fields["share"] for task in made[0].tasks] == ["", "50%"]
        outer.advance(1)
        assert [(task.description, task.completed) for task in made[0].tasks] == [("outer", 1)]
    with pytest.raises(ValueError, match="over"), bars.task(TaskRate("next", None)):
        raise ValueError("over")
    assert [entry.calls for entry in made] == [["start", "stop"]] * 2


@pytest.mark.parametrize(("quiet_seconds", "visible"), [(-1, True), (60, False)])
def test_what_is_over_soon_is_not_shown(quiet_seconds: float, visible: bool) -> None:
    made = Bars()
    with ProgressBars(lambda: made, quiet_seconds).task(TaskRate("work", 4)) as bar:
        assert not made.tasks[0].visible
        bar.advance(1)
        assert made.tasks[0].visible is visible
