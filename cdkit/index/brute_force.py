"""Brute force over a random sample of stored embeddings, in bounded memory: the truth that recall is measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.fingerprints import GOLDEN, splitmix64
from cdkit.core.shards import read_shard
from cdkit.core.threads import separate_threads
from cdkit.index.embedding_files import StoredEmbeddings
from cdkit.index.records import BLOCK_ROWS, read_ahead, read_embeddings

if TYPE_CHECKING:
    import numpy as np
    import torch


TOP = 200
MOST_HITS = 4_000_000
MOST_PAIRS = 20_000
PAIRS_PER_BLOCK = 256
# Columns of a product at a time, so that it is still in a cache when it is compared.
COLUMNS = 1024
# Rows that say how near the best 200 are at least, before there are any.
FIRST_ROWS = 8192
# Rows are read one by one up to this share of them; a page holds two or three.
MOST_MAPPED = 0.1


@dataclass(frozen=True)
class Queries:
    """Measuring queries: float32 [q, dimension], and the captions held out for them (sorted int64 ids).

    Held-out captions are in the finished index, so they are kept out of training and, while measuring, out of every
    search and of the truth: what is measured equals an index without them.
    """

    vectors: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query's number and a caption's id, int64 [n] each."""

    queries: np.ndarray
    ids: np.ndarray

    def by_query(self, count: int) -> list[np.ndarray]:
        """The ids of each of `count` queries."""
        import numpy as np

        order = np.argsort(self.queries, kind="stable")
        ends = np.searchsorted(self.queries[order], np.arange(1, count))
        return np.split(self.ids[order], ends)


@dataclass(frozen=True)
class Truth:
    """Brute force over the sample: its ids (sorted), neighbours, the best 200 of each query, and some pairs to learn
    from, with their similarities."""

    ids: np.ndarray
    neighbours: Pairs
    best: Pairs
    learning: Pairs
    similarities: np.ndarray


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
            return _brute_force(embeddings, queries.vectors, threshold, member, min(wanted, total), total)
        except _TooManyHits as problem:
            wanted = max(TOP * 4, int(min(wanted, total) * problem.share * 0.8))


def _brute_force(
    embeddings: Sequence[Path],
    queries: np.ndarray,
    threshold: float,
    member: Callable[[np.ndarray], np.ndarray],
    expected: int,
    total: int,
) -> Truth:
    import numpy as np
    import torch

    asking = torch.from_numpy(queries)
    best, best_similarities = Pairs(*np.empty((2, 0), np.int64)), np.empty(0, np.float32)
    all_ids, neighbours, learning, learned = [np.empty(0, np.int64)], [], [], [np.empty(0, np.float32)]
    # The least of the best 200 so far: what is below it and the threshold is of no interest.
    floors = np.full(len(queries), -np.inf, dtype=np.float32)
    count = seen = 0
    for _, ids, vectors in read_ahead(read_sample(embeddings, member, expected / total)):
        all_ids.append(ids)
        seen += len(ids)
        asked, columns, near = pairs_above(asking, vectors, _least(asking, vectors, floors, threshold))
        alike = near >= threshold
        count += int(alike.sum())
        if count > MOST_HITS and expected > TOP * 4:
            raise _TooManyHits(seen / expected * MOST_HITS / count)
        neighbours.append(Pairs(asked[alike], ids[columns[alike]]))
        best, best_similarities, floors = _merge_best(
            _joined([best, Pairs(asked, ids[columns])]), np.concatenate([best_similarities, near]), floors
        )
        if sum(map(len, learned)) < MOST_PAIRS:
            pairs = asked[alike], columns[alike], near[alike]
            if not alike.any():
                nearest = torch.mm(asking, torch.from_numpy(vectors).T).max(dim=1)
                pairs = np.arange(len(queries)), nearest.indices.numpy(), nearest.values.numpy()
            chosen = np.linspace(0, len(pairs[0]) - 1, min(len(pairs[0]), PAIRS_PER_BLOCK)).astype(int)
            learning.append(Pairs(pairs[0][chosen], ids[pairs[1][chosen]]))
            learned.append(pairs[2][chosen])
    return Truth(
        ids=np.sort(np.concatenate(all_ids)),
        neighbours=_joined(neighbours),
        best=best,
        learning=_joined(learning),
        similarities=np.concatenate(learned),
    )


def pairs_above(
    queries: torch.Tensor, vectors: np.ndarray, floors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the queries and vectors (float32 [q, d], [n, d]) whose inner products are at least the query's floor
    (float32 [q]), and these; by query, then vector."""
    import numpy as np
    import torch

    points, least = torch.from_numpy(vectors), torch.from_numpy(floors)[:, None]

    def search(starts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        buffer, found = torch.empty(len(queries) * COLUMNS), []
        for start in starts.tolist():
            part = points[start : start + COLUMNS]
            similarities = buffer[: len(queries) * len(part)].view(len(queries), len(part))
            torch.mm(queries, part.T, out=similarities)
            places = np.flatnonzero((similarities >= least).numpy())
            rows, columns = np.divmod(places, len(part))
            found.append((rows, columns + start, similarities.numpy().ravel()[places]))
        return found

    starts = np.array_split(np.arange(0, len(points), COLUMNS), torch.get_num_threads())
    found = [block for blocks in separate_threads().map(search, starts) for block in blocks]
    nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    rows, columns, values = (np.concatenate(column) for column in zip(nothing, *found, strict=True))
    order = np.argsort(rows, kind="stable")
    return rows[order], columns[order], values[order]


def _least(queries: torch.Tensor, vectors: np.ndarray, floors: np.ndarray, threshold: float) -> np.ndarray:
    """float32 [q]: from where a vector is at least the threshold, or may be among a query's best 200."""
    import numpy as np
    import torch

    if not np.isfinite(floors).all():
        similarities = torch.mm(queries, torch.from_numpy(vectors[:FIRST_ROWS]).T)
        first = similarities.topk(min(TOP, similarities.shape[1]), dim=1).values[:, -1].numpy()
        # Its own product may round otherwise.
        floors = np.where(np.isfinite(floors), floors, first - np.float32(1e-6))
    return np.minimum(floors, np.float32(threshold))  # type: ignore[no-any-return]


def _merge_best(pairs: Pairs, similarities: np.ndarray, floors: np.ndarray) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """The best 200 of each query among `pairs`, their similarities, and the least of each query that has so many."""
    import numpy as np

    order = np.lexsort((-similarities, pairs.queries))
    starts = np.searchsorted(pairs.queries[order], np.arange(len(floors)))
    ranks = np.arange(len(order)) - starts[pairs.queries[order]]
    kept = order[ranks < TOP]
    floors = floors.copy()
    last = order[ranks == TOP - 1]
    floors[pairs.queries[last]] = similarities[last]
    return Pairs(pairs.queries[kept], pairs.ids[kept]), similarities[kept], floors


def _joined(parts: list[Pairs]) -> Pairs:
    import numpy as np

    nothing = np.empty(0, dtype=np.int64)
    queries = np.concatenate([nothing, *(part.queries for part in parts)])
    return Pairs(queries, np.concatenate([nothing, *(part.ids for part in parts)]))


def read_sample(
    paths: Sequence[Path], member: Callable[[np.ndarray], np.ndarray], share: float, *, number: str = "float32"
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """Shard, ids int64 [n] and embeddings [n, dimension] of rows that `member` picks, about `share` of all, by blocks.

    A small share is taken through memory maps: of a large pool, most pages are never read.
    """
    if share > MOST_MAPPED:
        for path in paths:
            for ids, vectors in read_embeddings([path], member, number=number):
                yield path, ids, vectors
        return
    stored = StoredEmbeddings(paths[0].parent)
    for path in paths:
        ids = read_shard(path, ["caption_id"], kind="embeddings")["caption_id"].to_numpy()
        chosen = ids[member(ids)]
        for start in range(0, len(chosen), BLOCK_ROWS):
            picked, vectors = stored.find(chosen[start : start + BLOCK_ROWS])
            yield path, picked, vectors.astype(number, copy=False)


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
