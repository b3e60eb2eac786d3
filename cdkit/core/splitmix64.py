"""splitmix64 (Steele et al. 2014): a hash of whole numbers that gives the same bits on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(states: np.ndarray) -> np.ndarray:
    """The generator's next output after each state, uint64 [n] both."""
    import numpy as np

    mixed = states + np.uint64(GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
