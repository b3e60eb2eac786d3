"""Brute force over a random sample of stored embeddings, in bounded memory: the truth that recall is measured by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.fingerprints import GOLDEN, splitmix64
from cdkit.index.records import read_embeddings

if TYPE_CHECKING:
    import numpy as np


TOP = 200
MOST_HITS = 4_000_000
MOST_PAIRS = 20_000
PAIRS_PER_BLOCK = 256


@dataclass(frozen=True)
class Queries:
    """Measuring queries: float32 [q, dimension], and the captions held out for them (sorted int64 ids).

    Held-out captions are in the finished index, so they are kept out of training and, while measuring, out of every
    search and of the truth: what is measured equals an index without them.
    """

    vectors: np.ndarray
    held_out: np.ndarray


@dataclass
class Truth:
    """Brute force over the sample: neighbours per query, the best 200 per query, and some pairs to learn from."""

    ids: np.ndarray
    neighbours: list[np.ndarray]
    best: list[np.ndarray]
    pair_queries: np.ndarray
    pair_vectors: np.ndarray


class _TooManyHits(Exception):
    """The threshold is so low that the sample has to be smaller; carries the share of it that was read."""

    def __init__(self, share: float) -> None:
        self.share = share


def brute_force(
    embeddings: Sequence[Path], queries: Queries, threshold: float, *, seed: int, sample: int, total: int
) -> Truth:
    """Exact neighbours of the queries in a random sample of the stored embeddings, in bounded memory."""
    import numpy as np

    wanted = sample
    while True:

        def member(ids: np.ndarray, wanted: int = wanted) -> np.ndarray:
            return sampled(ids, seed, MEASURED, wanted, total) & ~np.isin(ids, queries.held_out)

        try:
            return _brute_force(embeddings, queries.vectors, threshold, member, min(wanted, total))
        except _TooManyHits as problem:
            wanted = max(TOP * 4, int(min(wanted, total) * problem.share * 0.8))


def _brute_force(
    embeddings: Sequence[Path],
    queries: np.ndarray,
    threshold: float,
    member: Callable[[np.ndarray], np.ndarray],
    expected: int,
) -> Truth:
    import numpy as np

    all_ids: list[np.ndarray] = []
    hits: list[list[np.ndarray]] = [[] for _ in queries]
    best_ids = np.full((len(queries), TOP), -1, dtype=np.int64)
    best = np.full((len(queries), TOP), -np.inf, dtype=np.float32)
    pair_queries: list[np.ndarray] = []
    pair_vectors: list[np.ndarray] = []
    count = seen = pairs = 0
    for ids, vectors in read_embeddings(embeddings, member):
        similarities = queries @ vectors.T
        all_ids.append(ids)
        seen += len(ids)
        asked, columns = np.nonzero(similarities >= threshold)
        count += len(asked)
        if count > MOST_HITS and expected > TOP * 4:
            raise _TooManyHits(seen / expected * MOST_HITS / count)
        for number, chunk in zip(*_group(asked, ids[columns]), strict=True):
            hits[number].append(chunk)
        best, best_ids = _merge_best(best, best_ids, similarities, ids)
        if not len(asked):
            asked, columns = np.arange(len(queries)), similarities.argmax(axis=1)
        if pairs < MOST_PAIRS:
            chosen = np.linspace(0, len(asked) - 1, min(len(asked), PAIRS_PER_BLOCK)).astype(int)
            pair_queries.append(asked[chosen])
            pair_vectors.append(vectors[columns[chosen]])
            pairs += len(chosen)
    empty = np.empty(0, dtype=np.int64)
    return Truth(
        ids=np.sort(np.concatenate(all_ids)) if all_ids else empty,
        neighbours=[np.concatenate(chunks) if chunks else empty for chunks in hits],
        best=[row[row >= 0] for row in best_ids],
        pair_queries=np.concatenate(pair_queries) if pair_queries else empty,
        pair_vectors=np.concatenate(pair_vectors) if pair_vectors else np.empty((0, queries.shape[1]), np.float32),
    )


def _group(keys: np.ndarray, values: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """`values` grouped by sorted `keys`."""
    import numpy as np

    groups, starts = np.unique(keys, return_index=True)
    return groups.tolist(), np.split(values, starts[1:]) if len(groups) else []


def _merge_best(
    best: np.ndarray, best_ids: np.ndarray, similarities: np.ndarray, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    if similarities.shape[1] > TOP:
        columns = np.argpartition(similarities, -TOP, axis=1)[:, -TOP:]
        similarities, block_ids = np.take_along_axis(similarities, columns, axis=1), ids[columns]
    else:
        block_ids = np.broadcast_to(ids, similarities.shape)
    both, both_ids = np.concatenate([best, similarities], axis=1), np.concatenate([best_ids, block_ids], axis=1)
    keep = np.argpartition(both, -TOP, axis=1)[:, -TOP:]
    return np.take_along_axis(both, keep, axis=1), np.take_along_axis(both_ids, keep, axis=1)


TRAINING, MEASURED, HELD_OUT = 1, 2, 3
_WHOLE = 2**64


def draw(ids: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """uint64 [n]: a uniform number per id, independent between purposes."""
    import numpy as np

    stream = np.uint64(((seed - 1) * GOLDEN + purpose * 0xD1342543DE82EF95) % _WHOLE)
    return splitmix64(ids.astype(np.uint64) + stream)


def sampled(ids: np.ndarray, seed: int, purpose: int, wanted: int, total: int) -> np.ndarray:
    """bool [n]: which ids belong to a sample of about `wanted` out of `total`."""
    import numpy as np

    if wanted >= total:
        return np.ones(len(ids), dtype=bool)
    return draw(ids, seed, purpose) < np.uint64(_WHOLE * wanted // total)
