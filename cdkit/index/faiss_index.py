"""The FAISS index itself: train it, turn vectors into codes, open it memory-mapped, and ask it for candidates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.index.layout import Layout

if TYPE_CHECKING:
    import numpy as np

# Faiss's defaults (50 rounds of 40 and 4 PQ iterations) take ten times as long for no measurable recall.
OPQ_ROUNDS, OPQ_FIRST_ITERATIONS, OPQ_ITERATIONS = 4, 8, 2
OPQ_POINTS = 16_384
KMEANS_ROUNDS = 8
BLOCK_POINTS = 65_536
# Twice the lists bring fewer new candidates than this share: probing ends.
GROWTH = 0.002


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
    """The IVF-PQ inside an OPQ pre-transform."""
    import faiss

    return faiss.downcast_index(faiss.extract_index_ivf(index))


def rotation(index: Any) -> Any:
    """The OPQ matrix of an index made by `train`."""
    import faiss

    return faiss.downcast_VectorTransform(index.chain.at(0))


def new_exact(layout: Layout) -> Any:
    """An empty exact index over inner products, ids kept."""
    import faiss

    index = faiss.index_factory(layout.dimension, layout.factory, faiss.METRIC_INNER_PRODUCT)
    index.train(_ones(layout.dimension))
    return index


def _ones(dimension: int) -> np.ndarray:
    import numpy as np

    return np.ones((1, dimension), dtype=np.float32)


def train(layout: Layout, vectors: np.ndarray, *, seed: int) -> Any:
    """A trained, empty OPQ + IVF (HNSW coarse quantiser) + PQ index.

    vectors: [points, dimension], any float type, in random order; the rotation learns from the first of them.
    """
    import faiss
    import numpy as np

    index = faiss.index_factory(layout.dimension, layout.factory, faiss.METRIC_INNER_PRODUCT)
    ivf = inverted_file(index)
    # Silences warnings that the C++ library prints: the number of points is the plan's decision.
    for clustering in (ivf.pq.cp, ivf.cp):
        clustering.min_points_per_centroid = 1
        clustering.seed = seed
        clustering.niter = KMEANS_ROUNDS
    ivf.cp.max_points_per_centroid = max(256, len(vectors) // layout.lists + 1)
    matrix = _train_rotation(index, layout, vectors, seed=seed)
    rotated = np.empty((len(vectors), layout.reduced), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_POINTS):
        block = np.ascontiguousarray(vectors[start : start + BLOCK_POINTS], dtype=np.float32)
        rotated[start : start + BLOCK_POINTS] = matrix.apply(block)
    _train_lists(ivf, rotated)
    ivf.train(rotated)
    index.is_trained = True
    return index


def _train_rotation(index: Any, layout: Layout, vectors: np.ndarray, *, seed: int) -> Any:
    """Set the index's rotation: the principal subspace, not centred (inner products would change), then OPQ in it.

    OPQ alone starts from a random subspace, where half of every similarity is lost, and leaves it slowly.
    """
    import faiss
    import numpy as np

    basis = principal_directions(vectors, layout.reduced)
    points = np.ascontiguousarray(np.asarray(vectors[:OPQ_POINTS], dtype=np.float32) @ basis.T)
    inner = faiss.OPQMatrix(layout.reduced, layout.code_bytes)
    codebook = faiss.ProductQuantizer(layout.reduced, layout.code_bytes, 8)
    codebook.cp.min_points_per_centroid = 1
    codebook.cp.seed = seed
    inner.pq, inner.niter, inner.max_train_points = codebook, OPQ_ROUNDS, OPQ_POINTS
    inner.niter_pq_0, inner.niter_pq = OPQ_FIRST_ITERATIONS, OPQ_ITERATIONS
    inner.train(points)
    turn = faiss.vector_to_array(inner.A).reshape(layout.reduced, layout.reduced)
    matrix = rotation(index)
    faiss.copy_array_to_vector(np.ascontiguousarray(turn @ basis, dtype=np.float32).ravel(), matrix.A)
    matrix.is_trained = matrix.is_orthonormal = True
    return matrix


def principal_directions(vectors: np.ndarray, count: int) -> np.ndarray:
    """The `count` orthonormal directions that keep most of the vectors' inner products, float32 [count, dimension]."""
    import numpy as np

    moment = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK_POINTS):
        block = np.asarray(vectors[start : start + BLOCK_POINTS], dtype=np.float32)
        moment += block.T @ block
    _, directions = np.linalg.eigh(moment)
    return np.ascontiguousarray(directions[:, ::-1][:, :count].T, dtype=np.float32)


def _train_lists(ivf: Any, rotated: np.ndarray) -> None:
    """k-means, then the graph over the centroids on one thread: HNSW insertion order must not depend on timing."""
    import faiss

    parameters = ivf.cp
    clustering = faiss.Clustering(ivf.d, ivf.nlist, parameters)
    flat = faiss.IndexFlatIP(ivf.d) if parameters.spherical else faiss.IndexFlatL2(ivf.d)
    clustering.train(rotated, flat)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(ivf.nlist, ivf.d)
    with faiss_threads(1):
        ivf.quantizer.add(centroids)
    # FAISS leaves a quantiser alone that is trained and holds one vector per list.
    ivf.quantizer.is_trained = True


def encode(index: Any, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List number (int64 [n]) and PQ code (uint8 [n, code bytes]) of each vector."""
    import faiss
    import numpy as np

    ivf = inverted_file(index)
    rotated = rotation(index).apply(np.ascontiguousarray(vectors, dtype=np.float32))
    _, lists = ivf.quantizer.search(rotated, 1)
    lists = np.ascontiguousarray(lists[:, 0])
    codes = np.empty((len(rotated), ivf.code_size), dtype=np.uint8)
    ivf.encode_vectors(len(rotated), faiss.swig_ptr(rotated), faiss.swig_ptr(lists), faiss.swig_ptr(codes))
    return lists, codes


def estimates(index: Any, vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The similarity the index would estimate for each pair of rows: what quantisation makes of the true one."""
    import numpy as np

    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    return np.einsum("ij,ij->i", queries, index.sa_decode(index.sa_encode(vectors)))  # type: ignore[no-any-return]


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

        parameters = self._parameters(selector, nprobe)
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

    def _within(self, query: np.ndarray, least: float, selector: Any, nprobe: int) -> Candidates:
        import numpy as np

        parameters = self._parameters(selector, nprobe)
        with faiss_threads(1):
            _, similarities, ids = self.index.range_search(query[None, :], least, params=parameters)
        order = np.lexsort((ids, -similarities))
        return Candidates(ids[order], similarities[order])

    def _parameters(self, selector: Any, nprobe: int | None) -> Any:
        import faiss

        library: Any = faiss
        if self.layout_exact:
            return library.SearchParameters(sel=selector) if selector is not None else None
        lists = library.SearchParametersIVF(nprobe=nprobe or self.nprobe, sel=selector)
        return library.SearchParametersPreTransform(index_params=lists)


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


def read_faiss(path: Path, *, exact: bool, flags: int = 0) -> Any:
    """The FAISS index in a file; raises InputError when there is none, or one of another kind than cdkit makes.

    exact: all vectors with their ids; else lists of codes behind a rotation.
    """
    import faiss

    try:
        index: Any = faiss.read_index(str(path), flags)
        if exact:
            whole = isinstance(index, faiss.IndexIDMap | faiss.IndexIDMap2)
        else:
            ivf = faiss.try_extract_index_ivf(index) if isinstance(index, faiss.IndexPreTransform) else None
            whole = ivf is not None and isinstance(faiss.downcast_index(ivf), faiss.IndexIVFPQ)
    except (RuntimeError, MemoryError, ValueError, OSError) as error:
        hint = "Build the index again with --force, or restore the file from a copy."
        raise InputError(f"{path} cannot be read by FAISS.", hint=hint) from error
    if not whole or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InputError(f"{path} is no FAISS index of cdkit's.", hint="Build the index again with --force.")
    return index
