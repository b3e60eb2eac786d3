"""Win rates with intervals, and Krippendorff's alpha against published values and its own definition."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.evaluation.preference import krippendorff_alpha, share_with_interval

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.743, abs=0.0005)


def test_alpha_at_its_ends() -> None:
    assert krippendorff_alpha([[1, 0, 1, 0], [1, 0, 1, 0]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) == 1
    assert krippendorff_alpha([[1, None], [None, 0]]) is None
    lot = random.Random(0)
    by_chance = [[lot.randrange(2) for _ in range(3000)] for _ in range(3)]
    assert krippendorff_alpha(by_chance) == pytest.approx(0, abs=0.03)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, None]), min_size=5, max_size=5), min_size=2, max_size=5))
def test_alpha_asks_for_no_order_of_raters(table: list[list[float | None]]) -> None:
    alpha = krippendorff_alpha(table)
    again = krippendorff_alpha(table[::-1])
    assert alpha == again or alpha == pytest.approx(again)
    assert alpha is None or alpha <= 1


def test_an_interval_holds_what_raters_and_prompts_vary() -> None:
    lot = random.Random(1)
    table: list[list[float | None]] = [[float(lot.random() < 0.7) for _ in range(40)] for _ in range(8)]
    prompts = [number // 2 for number in range(40)]
    estimate = share_with_interval(table, prompts, resamples=500, seed=0)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < 0.7 < estimate.high
    assert 0.05 < estimate.high - estimate.low < 0.25
    assert estimate.n == 320
    # Raters who agree with themselves alone are few opinions, however many pairs they saw.
    split: list[list[float | None]] = [[float(rater % 2)] * 40 for rater in range(4)]
    wide = share_with_interval(split, prompts, resamples=500, seed=0)
    assert wide.low is not None
    assert wide.high is not None
    assert wide.high - wide.low > 0.5


def test_unanswered_pairs_count_nothing() -> None:
    estimate = share_with_interval([[1.0, None, 0.0], [1.0, 1.0, None]], [0, 1, 2], resamples=50, seed=0)
    assert (estimate.value, estimate.n) == (0.75, 4)
    alone = share_with_interval([[1.0]], [0], resamples=50, seed=0)
    assert (alone.value, alone.low, alone.n) == (1.0, None, 1)
