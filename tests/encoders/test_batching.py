from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cdkit.encoders.batches import Batching, length_sorted_batches, windows


def exact(tokens: int) -> Batching:
    return Batching(tokens, least_tokens=tokens, window=1)


@given(st.lists(st.integers(1, 77), max_size=300), st.integers(1, 500))
def test_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_sorted_batches(np.array(lengths, dtype=np.int64), exact(budget)))
    rows = [int(row) for batch in batches for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        assert len(batch) * longest <= budget or len(batch) == 1


@given(st.lists(st.integers(1, 77), min_size=1, max_size=300))
def test_lengths_ascend_and_ties_keep_their_order(lengths: list[int]) -> None:
    rows = np.concatenate(list(length_sorted_batches(np.array(lengths), exact(200))))
    assert rows.tolist() == sorted(range(len(lengths)), key=lambda row: (lengths[row], row))


def test_batches_are_filled() -> None:
    # 100 captions of 10 tokens under 200 tokens: 20 a batch, not one more or less.
    assert [len(batch) for batch in length_sorted_batches(np.full(100, 10), exact(200))] == [20] * 5


def test_a_row_longer_than_the_budget_stands_alone() -> None:
    assert [batch.tolist() for batch in length_sorted_batches(np.array([50, 3]), exact(10))] == [[1], [0]]


def test_a_batch_ends_where_padding_would_cost_more() -> None:
    lengths = np.array([10] * 8 + [11] * 2 + [30] * 4)
    ended = [batch.tolist() for batch in length_sorted_batches(lengths, Batching(1000, least_tokens=100, window=1))]
    assert ended == [list(range(10)), [10, 11, 12, 13]]
    assert len(list(length_sorted_batches(lengths, Batching(1000, least_tokens=111, window=1)))) == 1


@given(st.integers(0, 1000), st.integers(1, 300))
def test_windows_cover_all_rows_evenly(rows: int, most: int) -> None:
    edges = windows(rows, most)
    assert [row for start, stop in edges for row in range(start, stop)] == list(range(rows))
    sizes = [stop - start for start, stop in edges]
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
