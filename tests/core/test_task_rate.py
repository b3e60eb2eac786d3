from __future__ import annotations

import time

import pytest

from cdkit.core.task_rate import TaskRate


def _rate(done: float, total: float | None, unit: str = "steps", seconds: float = 10.0) -> TaskRate:
    return TaskRate("training", total, unit, done, began=time.monotonic() - seconds)


def test_what_is_left_goes_on_at_the_rate_so_far() -> None:
    assert _rate(40, 200).left() == pytest.approx(40, rel=0.01)
    assert _rate(250, 200).left() == 0


@pytest.mark.parametrize(("done", "total"), [(0, 200), (1, 200), (40, None), (40, 0)])
def test_nothing_is_made_up_of_the_first_moments_or_without_an_end(done: float, total: float | None) -> None:
    assert _rate(done, total).left() is None


def test_it_speaks_with_and_without_a_unit_and_an_end() -> None:
    assert _rate(1234, 5000).text() == "training: 1,234 of 5,000 steps"
    assert _rate(1234, None, "").text() == "training: 1,234"
    assert _rate(2000, 5000).speed() == "200 steps/s"
    assert _rate(5, 50, "").speed() == "0.5/s"
    assert _rate(5, 50).share() == "10%"
    assert _rate(1234, None).share() == "1,234"
