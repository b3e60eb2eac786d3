"""Which captions run together: the sizes that suit a device, and batches of captions of about the same length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Batching:
    """How a kind of device is kept busy; it decides which captions share a batch, and so an embedding's last bits.

    tokens: of a batch, padding included. least_tokens: from how many on a batch ends where the next caption is so
    much longer that padding would cost more than a batch of its own. window: captions that are sorted by length
    together, the most that a kill costs.
    """

    tokens: int
    least_tokens: int
    window: int


# Activations of a batch fit a CPU's cache; a GPU needs tens of thousands of tokens before it computes instead of
# starting kernels (docs/results.md).
BATCHING = {
    "cpu": Batching(tokens=1024, least_tokens=1024, window=1 << 14),
    "cuda": Batching(tokens=65_536, least_tokens=8192, window=1 << 18),
    "mps": Batching(tokens=8192, least_tokens=2048, window=1 << 15),
}


def batching_of(device: str) -> Batching:
    """What suits a torch device, by its kind alone."""
    return BATCHING.get(device.partition(":")[0], BATCHING["cpu"])


# Share of padding from which a batch ends early.
MOST_PADDING = 0.1


def length_sorted_batches(lengths: np.ndarray, batching: Batching) -> Iterator[np.ndarray]:
    """Yield row numbers batch by batch, shortest captions first; every row once.

    lengths: int [n], tokens per row, at least 1. A batch's rows × its longest length stay within the budget, except
    that one row alone may exceed it. The same lengths give the same batches.
    """
    order = np.argsort(lengths, kind="stable")
    ascending = lengths[order].astype(np.int64)
    start = 0
    while start < len(order):
        # In ascending order the last row is the longest, so rows × longest only grows: the fitting ones are a prefix.
        ahead = ascending[start : start + max(1, batching.tokens)]
        sizes = ahead * np.arange(1, len(ahead) + 1)
        count = max(1, int(np.searchsorted(sizes, batching.tokens, side="right")))
        near = int(np.searchsorted(ahead[:count], ahead[0] * (1 + MOST_PADDING) + 1, side="right"))
        if near < count and sizes[near - 1] >= batching.least_tokens:
            count = near
        yield order[start : start + count]
        start += count


def windows(rows: int, most: int) -> list[tuple[int, int]]:
    """Rows as consecutive ranges of about the same size, at most `most` each; one empty range when there are none."""
    count = max(1, -(-rows // most))
    edges = [rows * number // count for number in range(count + 1)]
    return list(pairwise(edges))
