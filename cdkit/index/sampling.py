"""Random samples of captions that depend on the seed and the caption's id alone, not on shards or their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

TRAINING, MEASURED, HELD_OUT = 1, 2, 3
_WHOLE = 2**64


def draw(ids: np.ndarray, seed: int, purpose: int) -> np.ndarray:
    """uint64 [n]: a uniform number per id, independent between purposes. Steele et al. 2014, splitmix64."""
    import numpy as np

    value = ids.astype(np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + purpose * 0xD1342543DE82EF95) % _WHOLE)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def sampled(ids: np.ndarray, seed: int, purpose: int, wanted: int, total: int) -> np.ndarray:
    """bool [n]: which ids belong to a sample of about `wanted` out of `total`."""
    import numpy as np

    if wanted >= total:
        return np.ones(len(ids), dtype=bool)
    return draw(ids, seed, purpose) < np.uint64(_WHOLE * wanted // total)
