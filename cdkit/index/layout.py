"""Which FAISS index to build: its factory, its sizes, and how much data trains it. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

EXACT_BELOW = 200_000
CODE_BYTES = 48
RECALL_TARGET = 0.99


@dataclass(frozen=True)
class IndexSettings:
    """What decides the FAISS file and its search settings."""

    bytes_per_caption: int = CODE_BYTES
    exact_below: int = EXACT_BELOW
    keep_embeddings: bool = False
    recall_target: float = RECALL_TARGET
    seed: int = 0
    threads: int = 1
    device: str | None = None


FLAT_BELOW = 20_000
ID_BYTES = 8
CENTROIDS_PER_CODEBOOK = 256
# Faiss warns below 39 points per centroid; more than this costs time and gains little.
POINTS_PER_LIST = 48
LEAST_POINTS_PER_LIST = 39
# What the codebooks learn from, however few the lists.
LEAST_TRAINING_POINTS = 65_536
# All centroids are compared up to here, exact and as fast; beyond, a graph leads to the nearest.
MOST_FLAT_LISTS = 16_384
HNSW_LINKS = 32
# k-means on more lists than this takes days without a GPU (training costs lists² × dimension).
MOST_LISTS = 131_072
# What Python, PyTorch and FAISS take before they hold a vector.
RUNTIME_BYTES = 1 << 29
# Share of the dimensions that a code must keep; sizes that divide them worse give way to one that divides them.
LEAST_KEPT = 0.75
# Codes of these sizes are RaBitQ's, a bit for each direction and 8 bytes of factors, where vectors have as many
# directions as the smaller has bits: at equal recall they need a fraction of the candidates that product codes need.
SIGN_CODE_BYTES = (40, 48)
FACTOR_BYTES = 8
# Share of a caption's bytes that the coarse quantiser may add.
TABLE_SHARE = 0.1


@dataclass(frozen=True)
class Layout:
    """One choice of index. `lists` is 0 for exact search; `reduced` is the dimension after the rotation.

    signs: a code is a bit for each direction, and what undoes the bias (RaBitQ), not one number per part (PQ).
    """

    captions: int
    dimension: int
    code_bytes: int
    lists: int = 0
    reduced: int = 0
    signs: bool = False

    @property
    def exact(self) -> bool:
        return self.lists == 0

    @property
    def factory(self) -> str:
        """The FAISS factory string."""
        if self.exact:
            return "IDMap2,Flat" if self.code_bytes == 4 * self.dimension else "IDMap2,SQfp16"
        graph = f"_HNSW{HNSW_LINKS}" if self.lists > MOST_FLAT_LISTS else ""
        if self.signs:
            return f"RR{self.reduced},IVF{self.lists}{graph},RaBitQ"
        return f"OPQ{self.code_bytes}_{self.reduced},IVF{self.lists}{graph},PQ{self.code_bytes}x8"

    @property
    def training_points(self) -> int:
        """Vectors drawn at random to train on; 0 for exact search."""
        if self.exact:
            return 0
        return min(self.captions, max(POINTS_PER_LIST * self.lists, LEAST_TRAINING_POINTS))

    @property
    def table_bytes(self) -> int:
        """Everything besides codes and ids: rotation, codebooks, coarse centroids and their graph, list sizes."""
        if self.exact:
            return 0
        rotation = 4 * self.reduced * self.dimension
        codebooks = 0 if self.signs else 4 * CENTROIDS_PER_CODEBOOK * self.reduced
        links = 4 * 2 * HNSW_LINKS + 16 if self.lists > MOST_FLAT_LISTS else 0
        coarse = self.lists * (4 * self.reduced + links)
        return rotation + codebooks + coarse + 8 * self.lists

    @property
    def index_bytes(self) -> int:
        """Size of caption.index on disk."""
        return self.captions * (self.code_bytes + ID_BYTES) + self.table_bytes

    @property
    def serving_bytes(self) -> int:
        """Memory that must be resident to search; the lists themselves are memory-mapped."""
        return self.index_bytes if self.exact else self.table_bytes

    def building_bytes(self, shard_rows: int) -> int:
        """Peak memory of training (points in fp16, fp32 and rotated) or of adding one shard, whichever is more."""
        if self.exact:
            return self.index_bytes + 6 * self.dimension * min(shard_rows, self.captions)
        training = self.training_points * (6 * self.dimension + 8 * self.reduced) + 3 * self.table_bytes
        rows = min(shard_rows, self.captions)
        adding = rows * (6 * self.dimension + 2 * (self.code_bytes + ID_BYTES)) + self.table_bytes
        return RUNTIME_BYTES + max(training, adding)


def choose_layout(
    captions: int, dimension: int, code_bytes: int = CODE_BYTES, exact_below: int = EXACT_BELOW
) -> Layout:
    """The index for `captions` vectors: exact when small, OPQ + IVF + PQ when large.

    code_bytes: bytes of one compressed vector (its 8-byte id comes on top). Too few captions to train on fall back
    to exact search. Follows https://github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index.
    """
    if captions <= exact_below or captions < LEAST_POINTS_PER_LIST * CENTROIDS_PER_CODEBOOK:
        return exact_layout(captions, dimension)
    return compressed_layout(captions, dimension, code_bytes)


def exact_layout(captions: int, dimension: int) -> Layout:
    """Brute force: fp32 while tiny, fp16 beyond (2e-4 off at most, and searches recompute what they report)."""
    return Layout(captions, dimension, (4 if captions <= FLAT_BELOW else 2) * dimension)


def compressed_layout(captions: int, dimension: int, code_bytes: int, lists: int | None = None) -> Layout:
    """Codes in as many lists as their tables allow: signs for sizes that suit them better, product codes else."""
    if code_bytes not in SIGN_CODE_BYTES or dimension < 8 * (SIGN_CODE_BYTES[0] - FACTOR_BYTES):
        return product_layout(captions, dimension, code_bytes, lists)
    directions = min(8 * (code_bytes - FACTOR_BYTES), dimension // 8 * 8)
    code_bytes = directions // 8 + FACTOR_BYTES
    lists = lists or choose_lists(captions, code_bytes, directions)
    return Layout(captions, dimension, code_bytes, lists, directions, signs=True)


def product_layout(captions: int, dimension: int, code_bytes: int, lists: int | None = None) -> Layout:
    """OPQ to four dimensions per byte where the vectors have them."""
    code_bytes = min(code_bytes, dimension)
    if code_bytes * (dimension // code_bytes) < LEAST_KEPT * min(dimension, 4 * code_bytes):
        divisors = [size for size in range(1, code_bytes + 1) if dimension % size == 0]
        code_bytes = divisors[-1] if divisors[-1] * 2 > code_bytes else code_bytes
    reduced = min(4 * code_bytes, code_bytes * (dimension // code_bytes))
    return Layout(captions, dimension, code_bytes, lists or choose_lists(captions, code_bytes, reduced), reduced)


def choose_lists(captions: int, code_bytes: int, reduced: int) -> int:
    """A power of two near 16·√n, bounded by training data, by the share of the file and by what k-means can do."""
    by_tables = TABLE_SHARE * captions * (code_bytes + ID_BYTES) / (4 * reduced + 8 * HNSW_LINKS + 24)
    by_training = captions / LEAST_POINTS_PER_LIST
    wanted = min(16 * math.sqrt(captions), by_tables, by_training, MOST_LISTS)
    return 1 << max(4, int(math.log2(max(wanted, 1))))
