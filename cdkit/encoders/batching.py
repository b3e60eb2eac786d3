"""Length-sorted batches under a token budget: what makes a trimmed text tower waste almost no padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

# One number for every device, thread count and memory size: which captions share a batch decides the last bits of an
# embedding. Activations of a ViT-B tower then fit a CPU's cache (512 and 2,048 are slower), and a GPU is kept busy
# because the next batch is queued while one runs.
TOKEN_BUDGET = 1024


def length_sorted_batches(lengths: np.ndarray, budget: int = TOKEN_BUDGET) -> Iterator[np.ndarray]:
    """Yield row numbers batch by batch, shortest captions first; every row once.

    lengths: int [n], tokens per row, at least 1. A batch's rows × its longest length stay within `budget`, except that
    one row alone may exceed it. The same lengths give the same batches.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        # In ascending order the last row is the longest, so rows × longest only grows: the fitting ones are a prefix.
        ahead = lengths[order[start : start + max(1, budget)]].astype(np.int64)
        sizes = ahead * np.arange(1, len(ahead) + 1)
        stop = start + max(1, int(np.searchsorted(sizes, budget, side="right")))
        yield order[start:stop]
        start = stop
