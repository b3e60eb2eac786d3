"""The FAISS index itself: made of learned tables, opened memory-mapped, and asked for candidates."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.index.assignment import MOST_COMPARED, GroupedCentroids
from cdkit.index.clustering import Kernels, Tables
from cdkit.index.layout import Layout

if TYPE_CHECKING:
    import numpy as np

# From this release on a graph is the same whatever the number of threads that build it.
LEAST_FAISS = "1.15"
# Twice the lists bring fewer new candidates than this share: probing ends.
GROWTH = 0.002
LEAST_VISITED = 64
# What FAISS may compute for the lists of an index as it opens it: 1 KiB for each list and byte of a code, of which a
# list of cdkit's has 39 or more.
COMPUTED_BYTES, COMPUTED_SHARE = 2 << 30, 32
# The limits that FAISS reads with are of the whole process.
_READING = threading.Lock()


@contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Run FAISS on `count` threads inside the block; files are the same bytes for the same count.

    Encode before or after it, not inside: torch shares FAISS's OpenMP and would keep this number for good.
    """
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def inverted_file(index: Any) -> Any:
    """The lists of codes behind the rotation."""
    import faiss

    return faiss.downcast_index(faiss.extract_index_ivf(index))


def rotation(index: Any) -> Any:
    """The rotation of an index that `assemble` made."""
    import faiss

    return faiss.downcast_VectorTransform(index.chain.at(0))


def has_codebooks(index: Any) -> bool:
    """Whether its codes are numbers of codebooks' entries (PQ), not signs (RaBitQ)."""
    import faiss

    return isinstance(inverted_file(index), faiss.IndexIVFPQ)


def new_exact(layout: Layout) -> Any:
    """An empty exact index over inner products, ids kept."""
    import faiss

    index = faiss.index_factory(layout.dimension, layout.factory, faiss.METRIC_INNER_PRODUCT)
    index.train(_ones(layout.dimension))
    return index


def _ones(dimension: int) -> np.ndarray:
    import numpy as np

    return np.ones((1, dimension), dtype=np.float32)


def is_too_old(version: str) -> bool:
    """Whether a release of FAISS comes before the least that builds indexes."""
    release, least = (tuple(int(part) for part in text.split(".")[:2]) for text in (version, LEAST_FAISS))
    return release < least


def require_faiss() -> None:
    """Raise ConfigError for a FAISS that is too old to build the same index twice."""
    import faiss

    if is_too_old(faiss.__version__):
        raise ConfigError(
            f"faiss {faiss.__version__} is too old to build an index: {LEAST_FAISS} or newer is needed.",
            hint=f"pip install 'faiss-cpu>={LEAST_FAISS}'",
        )


def faiss_kernels() -> Kernels:
    """The inner loops of clustering that are fastest on CPUs."""
    import faiss
    import torch

    def nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
        if len(centroids) > MOST_COMPARED:
            return GroupedCentroids.of(centroids).nearest(points)
        flat = faiss.IndexFlatIP(centroids.shape[1])
        flat.add(centroids.numpy())
        return torch.from_numpy(flat.search(points.contiguous().numpy(), 1)[1][:, 0])

    def encode(points: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
        quantizer = faiss.ProductQuantizer(points.shape[1], len(codebooks), 8)
        faiss.copy_array_to_vector(codebooks.numpy().ravel(), quantizer.centroids)
        quantizer.sync_transposed_centroids()
        return torch.from_numpy(quantizer.compute_codes(points.contiguous().numpy()))

    return Kernels(nearest, encode)


def assemble(layout: Layout, tables: Tables) -> Any:
    """The empty index that `tables` describe."""
    import faiss

    require_faiss()
    index = faiss.index_factory(layout.dimension, layout.factory, faiss.METRIC_INNER_PRODUCT)
    matrix, ivf = rotation(index), inverted_file(index)
    faiss.copy_array_to_vector(tables.rotation.numpy().ravel(), matrix.A)
    matrix.is_trained = matrix.is_orthonormal = True
    ivf.quantizer.add(tables.centroids.numpy())
    if layout.signs:
        # The most: a query's numbers are rounded to bytes before they meet the signs.
        ivf.qb = 8
    else:
        faiss.copy_array_to_vector(tables.codebooks.numpy().ravel(), ivf.pq.centroids)
        ivf.pq.sync_transposed_centroids()
    ivf.is_trained = index.is_trained = True
    return index


def tables_of(index: Any) -> Tables:
    """The tables inside an index that `assemble` made."""
    import faiss
    import numpy as np
    import torch

    matrix, ivf = rotation(index), inverted_file(index)
    codebooks = np.empty((0, 0, 0), dtype=np.float32)
    if has_codebooks(index):
        codebooks = faiss.vector_to_array(ivf.pq.centroids).reshape(ivf.pq.M, ivf.pq.ksub, ivf.pq.dsub)
    turn = faiss.vector_to_array(matrix.A).reshape(matrix.d_out, matrix.d_in)
    centroids = ivf.quantizer.reconstruct_n(0, ivf.nlist)
    return Tables(*(torch.from_numpy(table) for table in (turn, centroids, codebooks)))


def grouped_lists(index: Any) -> GroupedCentroids | None:
    """What finds the list of a vector sooner than comparing it with all; None where there are too few."""
    import torch

    ivf = inverted_file(index)
    if ivf.nlist <= MOST_COMPARED:
        return None
    return GroupedCentroids.of(torch.from_numpy(ivf.quantizer.reconstruct_n(0, ivf.nlist)))


def encode(index: Any, vectors: np.ndarray, grouped: GroupedCentroids | None = None) -> tuple[np.ndarray, np.ndarray]:
    """List number (int64 [n]) and code (uint8 [n, code bytes]) of each vector; grouped: its `grouped_lists`."""
    import faiss
    import numpy as np
    import torch

    ivf = inverted_file(index)
    rotated = rotation(index).apply(np.ascontiguousarray(vectors, dtype=np.float32))
    if grouped is not None:
        lists = grouped.nearest(torch.from_numpy(rotated)).numpy()
    else:
        _, found = ivf.quantizer.search(rotated, 1, params=graph_parameters(ivf.quantizer, 1))
        lists = np.ascontiguousarray(found[:, 0])
    codes = np.empty((len(rotated), ivf.code_size), dtype=np.uint8)
    ivf.encode_vectors(len(rotated), faiss.swig_ptr(rotated), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
    return lists, codes


@dataclass(frozen=True)
class Candidates:
    """Caption ids and estimated similarities of one query, best first."""

    ids: np.ndarray
    similarities: np.ndarray


@dataclass(frozen=True)
class OpenIndex:
    """An index opened for reading. Every search carries its own parameters, so searches may run side by side.

    Each runs on the caller's thread alone: one query is too little work to share, and where other programs keep the
    cores busy, OpenMP threads wait for each other far longer than they work.
    """

    index: Any
    layout_exact: bool
    nprobe: int

    @property
    def count(self) -> int:
        return int(self.index.ntotal)

    def top(self, query: np.ndarray, count: int, *, selector: Any = None, nprobe: int | None = None) -> Candidates:
        """The `count` best by estimate. query: float32 [dimension]."""
        import numpy as np

        parameters = self.parameters(selector, nprobe)
        with faiss_threads(1):
            similarities, ids = self.index.search(query[None, :], max(1, min(count, self.count)), params=parameters)
        valid = ids[0] >= 0
        return Candidates(ids[0][valid], np.asarray(similarities[0][valid]))

    def within(
        self, query: np.ndarray, least: float, *, selector: Any = None, nprobe: int | None = None
    ) -> Candidates:
        """All whose estimate is above `least`, best first.

        A query in a dense region has its neighbours in more lists than others have: while twice the lists bring more
        than GROWTH, twice as many are probed again.
        """
        probes = nprobe or self.nprobe
        candidates = self._within(query, least, selector, probes)
        while not self.few(len(candidates.ids), probes) and probes < self.lists:
            probes *= 2
            before, candidates = len(candidates.ids), self._within(query, least, selector, probes)
            if len(candidates.ids) - before <= GROWTH * before:
                break
        return candidates

    def few(self, count: int, nprobe: int | None = None) -> bool:
        """Whether so few candidates were found that further lists need not be probed."""
        return self.layout_exact or count <= (nprobe or self.nprobe)

    @property
    def lists(self) -> int:
        return 1 if self.layout_exact else int(inverted_file(self.index).nlist)

    def coarse_parameters(self, probes: int) -> Any:
        """What a search for the lists to probe is given."""
        return graph_parameters(inverted_file(self.index).quantizer, probes)

    def _within(self, query: np.ndarray, least: float, selector: Any, nprobe: int) -> Candidates:
        import numpy as np

        parameters = self.parameters(selector, nprobe)
        with faiss_threads(1):
            _, similarities, ids = self.index.range_search(query[None, :], least, params=parameters)
        order = np.lexsort((ids, -similarities))
        return Candidates(ids[order], similarities[order])

    def parameters(self, selector: Any, nprobe: int | None) -> Any:
        """What a search is given: how many lists it probes, and among which ids."""
        import faiss

        library: Any = faiss
        if self.layout_exact:
            return library.SearchParameters(sel=selector) if selector is not None else None
        probes = nprobe or self.nprobe
        graph = self.coarse_parameters(probes)
        lists = library.SearchParametersIVF(nprobe=probes, sel=selector, quantizer_params=graph)
        return library.SearchParametersPreTransform(index_params=lists)


def graph_parameters(coarse: Any, count: int) -> Any:
    """What a search for the `count` nearest lists is given: by default a graph is left after 16, whatever is asked."""
    import faiss

    library: Any = faiss

    if not isinstance(faiss.downcast_index(coarse), faiss.IndexHNSW):
        return None
    return library.SearchParametersHNSW(efSearch=max(LEAST_VISITED, 2 * count))


def id_selector(ids: np.ndarray, *, excluded: bool = False) -> Any:
    """Restricts a search to `ids`, or keeps them out of it."""
    import faiss
    import numpy as np

    batch = faiss.IDSelectorBatch(np.ascontiguousarray(ids, dtype=np.int64))
    return faiss.IDSelectorNot(batch) if excluded else batch


def open_faiss(path: Path, *, exact: bool, nprobe: int) -> OpenIndex:
    """Open an index file memory-mapped; raises InputError when FAISS cannot read it, or it is of another kind."""
    import faiss

    # Lists are mapped by MMAP, flat codes only by its newer sibling.
    index = read_faiss(path, exact=exact, flags=faiss.IO_FLAG_MMAP_IFC if exact else faiss.IO_FLAG_MMAP)
    if not exact:
        # FAISS would start 32 threads per query to read lists ahead, 100 times the cost of scanning them.
        lists: Any = faiss.downcast_InvertedLists(inverted_file(index).invlists)
        lists.prefetch_nthread = 0
    return OpenIndex(index, exact, nprobe)


def _read(path: Path, flags: int) -> Any:
    """The index in a file. FAISS makes room for as much as a file says it holds, which may be anything: here it
    believes no more than the file's size allows, and what it computes for the lists itself."""
    import faiss

    library: Any = faiss
    size = path.stat().st_size
    with _READING:
        before = library.get_deserialization_vector_byte_limit(), library.get_deserialization_loop_limit()
        library.set_deserialization_vector_byte_limit(COMPUTED_BYTES + COMPUTED_SHARE * size)
        library.set_deserialization_loop_limit(size)
        try:
            return faiss.read_index(str(path), flags)
        finally:
            library.set_deserialization_vector_byte_limit(before[0])
            library.set_deserialization_loop_limit(before[1])


def read_faiss(path: Path, *, exact: bool, flags: int = 0) -> Any:
    """The FAISS index in a file; raises InputError when there is none, or one of another kind than cdkit makes.

    exact: all vectors with their ids; else lists of codes behind a rotation.
    """
    import faiss

    try:
        index: Any = _read(path, flags)
        if exact:
            whole = isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2)
        else:
            ivf = faiss.try_extract_index_ivf(index) if isinstance(index, faiss.IndexPreTransform) else None
            kinds = faiss.IndexIVFPQ | faiss.IndexIVFRaBitQ
            whole = ivf is not None and isinstance(faiss.downcast_index(ivf), kinds)
    except (RuntimeError, MemoryError, ValueError, OSError) as error:
        hint = "Build the index again with --force, or restore the file from a copy."
        raise InputError(f"{path} cannot be read by FAISS.", hint=hint) from error
    if not whole or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{path} is no FAISS index of cdkit's.", hint="Build the index again with --force.")
    return index
