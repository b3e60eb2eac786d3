from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cdkit.encoders.text_tower import length_sorted_batches


@given(st.lists(st.integers(1, 77), max_size=300), st.integers(1, 500))
def test_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_sorted_batches(np.array(lengths, dtype=np.int64), budget))
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= budget or len(batch) == 1


@given(st.lists(st.integers(1, 77), min_size=1, max_size=300))
def test_lengths_ascend_and_ties_keep_their_order(lengths: list[int]) -> None:
    rows = np.concatenate(list(length_sorted_batches(np.array(lengths), 200)))
    assert rows.tolist() == sorted(range(len(lengths)), key=lambda row: (lengths[row], row))


def test_batches_are_filled() -> None:
    # 100 captions of 10 tokens under 200 tokens: 20 a batch, not one more or less.
    assert [len(batch) for batch in length_sorted_batches(np.full(100, 10), 200)] == [20] * 5


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    assert [batch.tolist() for batch in length_sorted_batches(np.array([50, 3]), 10)] == [[1], [0]]
