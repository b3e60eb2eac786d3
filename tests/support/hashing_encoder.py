"""A small deterministic text encoder without weights: words hashed to fixed directions, summed and normalised."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from cdkit.core.text import clean_caption


class HashingEncoder:
    """Meets the TextEncoder protocol; captions that share words are similar."""

    def __init__(self, dimension: int = 64, *, threshold: float = 0.8, weights: str = "hashing") -> None:
        self.spec = f"hashing:{dimension}"
        self.dimension = dimension
        self.context_length = 32
        self.precision = "fp32"
        self.default_threshold = threshold
        self.encoded = 0
        self._weights = weights

    def weights_hash(self) -> str:
        return hashlib.sha256(f"{self._weights}-{self.dimension}".encode()).hexdigest()

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return np.array([len(clean_caption(caption).split()) + 2 for caption in captions], dtype=np.int32)

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        self.encoded += len(captions)
        vectors = np.zeros((len(captions), self.dimension), dtype=np.float64)
        for row, caption in enumerate(captions):
            for word in clean_caption(caption).split()[: self.context_length - 2]:
                vectors[row] += _direction(word, self.dimension)
        if advance is not None:
            advance(len(captions))
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


@lru_cache(maxsize=1 << 16)
def _direction(word: str, dimension: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(dimension)
