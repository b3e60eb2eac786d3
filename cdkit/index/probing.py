"""What searches would find at every number of probed lists, for many queries at once: one blocked matrix product.

A search by itself scans the lists of one query again for every setting. Here every code is decoded once and compared
with all queries, and counted under the setting from which its list is probed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cdkit.index.brute_force import pairs_above
from cdkit.index.faiss_index import GROWTH, OpenIndex, has_codebooks, id_selector, inverted_file, rotation
from cdkit.index.inverted_lists import IndexLists, blocks_of_lists

if TYPE_CHECKING:
    import numpy as np

FEWEST_PROBES = 4
ENTRIES_PER_BLOCK = 32_768
# Up to here the graph over the centroids is asked, whose answers a search gets too; beyond it finds all there is.
GRAPH_PROBES = 256

# FAISS rounds a query to 8 bits before it meets signs, which changes estimates by so much at most.
QUERY_ROUNDING = 4e-3

Wanted = Callable[["np.ndarray"], "np.ndarray"]


def is_among(ids: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool [n]: which ids are in `among`, which is sorted."""
    import numpy as np

    if not len(among):
        return np.zeros(len(ids), dtype=bool)
    return among[np.searchsorted(among, ids).clip(max=len(among) - 1)] == ids  # type: ignore[no-any-return]


def signs_decoded(codes: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Codes of signs (uint8 [n, d / 8 + 8]) behind their lists' centroids (float32 [n, d]) as float32 [n, d + 1].

    An estimate is its inner product with the query and a 1 behind it: with b the signs, c the centroid, and the two
    factors f = ‖x − c‖² − ‖x‖² and g that a code ends in, ⟨q, c⟩ + g ⟨q − c, b⟩ / √d − (f + ‖c‖²) / 2.
    Gao and Long, "RaBitQ", 2024.
    """
    import numpy as np

    dimension = centroids.shape[1]
    bits = np.unpackbits(codes[:, : dimension // 8], axis=1, bitorder="little")
    factors = np.ascontiguousarray(codes[:, dimension // 8 :]).view("<f4")
    scaled = (bits * np.float32(2) - np.float32(1)) * (factors[:, 1:] / np.float32(np.sqrt(dimension)))
    norms = np.einsum("ij,ij->i", centroids, centroids)
    offsets = -(factors[:, 0] + norms) / 2 - np.einsum("ij,ij->i", centroids, scaled)
    return np.concatenate([centroids + scaled, offsets[:, None]], axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Candidates:
    """Pairs of a query (int32 [n]) and an entry: the level that reaches it (int8) and its estimate (float32)."""

    level_count: int
    queries: np.ndarray
    levels: np.ndarray
    estimates: np.ndarray

    def counts(self, floors: np.ndarray) -> np.ndarray:
        """int64 [levels, q]: how many of each query are above its floor (float32 [q]) at each level."""
        import numpy as np

        above = self.estimates > floors[self.queries]
        cells = self.levels[above].astype(np.int64) * len(floors) + self.queries[above]
        counts = np.bincount(cells, minlength=self.level_count * len(floors))
        return counts.reshape(self.level_count, -1).cumsum(axis=0)


@dataclass(frozen=True)
class Probing:
    """Searches of `index` with `queries` (float32 [q, d]) among the entries in `ids` (sorted), or all but them.

    A level is a number of probed lists: 4, 8, 16, … up to all of them.
    """

    index: OpenIndex
    queries: np.ndarray
    ids: np.ndarray
    excluded: bool

    @cached_property
    def probes(self) -> list[int]:
        """Probed lists at each level."""
        if self.index.layout_exact:
            return [1]
        sizes = [FEWEST_PROBES]
        while sizes[-1] < self.index.lists:
            sizes.append(2 * sizes[-1])
        return sizes

    @property
    def rounding(self) -> float:
        """How far the estimates of a search may lie from those here."""
        return 0.0 if self.index.layout_exact or has_codebooks(self.index.index) else QUERY_ROUNDING

    @cached_property
    def _turned(self) -> np.ndarray:
        """The queries in the space of the codes."""
        return self.queries if self.index.layout_exact else rotation(self.index.index).apply(self.queries)

    @cached_property
    def _asking(self) -> np.ndarray:
        """What decoded vectors are multiplied with: the turned queries, behind which signs want a 1."""
        import numpy as np

        if not self.rounding:
            return self._turned
        return np.concatenate([self._turned, np.ones((len(self._turned), 1), np.float32)], axis=1)

    @cached_property
    def _levels(self) -> np.ndarray:
        """int8 [q, lists]: the level from which each list is probed."""
        import numpy as np

        levels = np.full((len(self.queries), self.index.lists), len(self.probes) - 1, dtype=np.int8)
        if self.index.layout_exact:
            return levels
        coarse = inverted_file(self.index.index).quantizer
        similarities = self._turned @ coarse.reconstruct_n(0, self.index.lists).T
        for level in reversed(range(len(self.probes) - 1)):
            count = self.probes[level]
            if count <= GRAPH_PROBES:
                nearest = coarse.search(self._turned, count, params=self.index.coarse_parameters(count))[1]
            else:
                nearest = np.argpartition(-similarities, count - 1, axis=1)[:, :count]
            np.put_along_axis(levels, nearest, np.int8(level), axis=1)
        return levels

    def _entries(self, among: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """ids and list numbers int64 [n], decoded vectors float32 [n, d], block by block; among: sorted ids."""

        def wanted(ids: np.ndarray) -> np.ndarray:
            rows = is_among(ids, self.ids) ^ self.excluded
            return rows if among is None else rows & is_among(ids, among)

        yield from self._exact_entries(wanted) if self.index.layout_exact else self._coded_entries(wanted)

    def _exact_entries(self, wanted: Wanted) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        import faiss
        import numpy as np

        ids, flat = faiss.vector_to_array(self.index.index.id_map), self.index.index.index
        for start in range(0, len(ids), ENTRIES_PER_BLOCK):
            block = ids[start : start + ENTRIES_PER_BLOCK]
            rows = wanted(block)
            yield block[rows], np.zeros(rows.sum(), dtype=np.int64), flat.reconstruct_n(start, len(block))[rows]

    def _coded_entries(self, wanted: Wanted) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        import numpy as np

        ivf = inverted_file(self.index.index)
        centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
        sizes = np.array([ivf.invlists.list_size(number) for number in range(ivf.nlist)], dtype=np.int64)
        source = IndexLists(self.index.index, np.empty(0, dtype=np.int64))
        for first, last in blocks_of_lists(sizes, ENTRIES_PER_BLOCK):
            ids, codes = source.block(first, last)
            rows = wanted(ids)
            lists = np.repeat(np.arange(first, last), sizes[first:last])[rows]
            if self.rounding:
                yield ids[rows], lists, signs_decoded(codes[rows], centroids[lists])
            else:
                yield ids[rows], lists, ivf.pq.decode(codes[rows]) + centroids[lists]

    def estimates(self, queries: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The estimated similarity of each pair of a query's number and a caption id, and the level that reaches it.

        Pairs whose caption is not among the entries have −inf.
        """
        import numpy as np

        order = np.argsort(ids, kind="stable")
        pairs = ids[order]
        estimates = np.full(len(ids), -np.inf, dtype=np.float32)
        levels = np.zeros(len(ids), dtype=np.int8)
        for block_ids, lists, vectors in self._entries(np.unique(pairs)):
            first, last = np.searchsorted(pairs, block_ids), np.searchsorted(pairs, block_ids, side="right")
            counts = last - first
            rows = np.repeat(np.arange(len(block_ids)), counts)
            places = order[np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(rows))]
            asked = queries[places]
            estimates[places] = np.einsum("ij,ij->i", self._asking[asked], vectors[rows])
            levels[places] = self._levels[asked, lists[rows]]
        return estimates, levels

    def candidates(self, floors: np.ndarray) -> Candidates:
        """All that is estimated above each query's floor (float32 [q]), whatever its list."""
        import numpy as np
        import torch

        queries = torch.from_numpy(self._asking)
        # What is more than a floor is at least the next number.
        least, parts = np.nextafter(floors, np.float32(np.inf)), []
        for _, lists, vectors in self._entries():
            asked, rows, estimates = pairs_above(queries, vectors, least)
            parts.append((asked.astype(np.int32), self._levels[asked, lists[rows]], estimates))
        return Candidates(len(self.probes), *(np.concatenate(column) for column in zip(*parts, strict=True)))

    def stops(self, counts: np.ndarray, level: int) -> np.ndarray:
        """int64 [q]: the level at which `OpenIndex.within` stops that starts at `level`, by counts [levels, q]."""
        import numpy as np

        queries = np.arange(counts.shape[1])
        levels = np.full(len(queries), level)
        probes, now = np.array(self.probes), counts[level]
        growing = (now > probes[levels]) & (levels < len(probes) - 1)
        while growing.any():
            levels[growing] += 1
            before, now = now, counts[levels, queries]
            growing &= (now - before > GROWTH * before) & (now > probes[levels]) & (levels < len(probes) - 1)
        return levels

    def best(self, count: int, level: int) -> np.ndarray:
        """float32 [q]: the least estimate among the best `count` of each query at `level`; +inf without any."""
        import numpy as np

        selector = id_selector(self.ids, excluded=self.excluded)
        parameters = self.index.parameters(selector, self.probes[level])
        similarities, ids = self.index.index.search(self.queries, count, params=parameters)
        filled = (ids >= 0).sum(axis=1)
        last = similarities[np.arange(len(ids)), np.maximum(filled - 1, 0)]
        return np.where(filled > 0, last, np.inf).astype(np.float32)
