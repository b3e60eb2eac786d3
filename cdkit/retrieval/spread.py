"""A diverse order of captions: every next one is the farthest from those before it (Gonzalez, 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdkit.index.search import Match, encode_queries

if TYPE_CHECKING:
    import numpy as np

    from cdkit.protocols import TextEncoder

# The order is quadratic in these; captions beyond them follow by similarity.
FARTHEST = 2000
POOL = 8000


def spread_order(encoder: TextEncoder, ranks: Sequence[tuple[str, Match]], seed: int) -> list[tuple[str, Match]]:
    """Ranked queries and matches in a seeded, diverse order."""
    captions = [match.caption for _, match in ranks[:POOL]]
    order = farthest_first(encode_queries(encoder, captions), FARTHEST, seed) if captions else []
    chosen = set(order)
    order += [place for place in range(len(ranks)) if place not in chosen]
    return [ranks[place] for place in order]


def farthest_first(vectors: np.ndarray, count: int, seed: int) -> list[int]:
    """Places of `count` rows of float32 [n, d], normalised: a random one, then always the farthest from those chosen.

    Of equally far rows the first is taken.
    """
    import numpy as np

    number = len(vectors)
    if number == 0:
        return []
    order = [int(np.random.default_rng(seed).integers(number))]
    nearest = np.full(number, -np.inf, dtype=np.float32)
    while len(order) < min(count, number):
        nearest = np.maximum(nearest, vectors @ vectors[order[-1]])
        nearest[order[-1]] = np.inf
        order.append(int(np.argmin(nearest)))
    return order
