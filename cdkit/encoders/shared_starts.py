"""What captions begin with alike is run once: under causal attention no token depends on what follows it.

On a CPU, where the tokens of a caption are what its embedding costs, that saves a sixth of the work. A GPU's causal
kernels need no mask as long as queries and keys are the same tokens, which is worth more there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cdkit.encoders.causal_tower import Before, CausalTower
from cdkit.encoders.tokenizing import Tokens

# Tokens that captions may begin with alike: the start token and two more. Keys and values of so many beginnings of
# each length take 300 MB for ViT-L/14; a fourth token would save one in a hundred more.
DEPTH = 3
MOST_STARTS = 1024
# A product of one row may depend on where the weights lie in memory; of several rows it does not.
LEAST_ROWS = 16
TOKEN_BITS = 32


@dataclass(frozen=True)
class Group:
    """Captions of a window whose first tokens are left out; before: what those are to the others, for some rows."""

    rows: np.ndarray
    skipped: int
    before: Callable[[np.ndarray], Sequence[Before] | None]


class SharedStarts:
    """Keys and values of the start token, and of the tokens after it that several captions of a window share."""

    def __init__(self, tower: CausalTower, start_token: int, pooled_token: int) -> None:
        self._tower = tower
        self._token = start_token
        self._pooled = pooled_token
        self._start = self._keyed(np.array([start_token]), None)

    def groups(self, tokens: Tokens) -> list[Group]:
        """A window's captions by how many of their first tokens are not run again; every caption in one group."""
        first, lengths = tokens.starts[:-1], tokens.lengths
        depths = ((lengths >= 2) & (tokens.ids[first] == self._token)).astype(np.int64)
        # Which of the beginnings of its depth a caption has.
        places = np.zeros(len(lengths), np.int64)
        tables: list[Sequence[Before] | None] = [None, self._start]
        for depth in range(1, DEPTH):
            candidates = np.flatnonzero((depths == depth) & (lengths >= depth + 2))
            following = tokens.ids[first[candidates] + depth].astype(np.int64)
            # The token that is pooled has to be run.
            candidates, following = candidates[following != self._pooled], following[following != self._pooled]
            keys, inverse, counts = np.unique(
                (places[candidates] << TOKEN_BITS) + following, return_inverse=True, return_counts=True
            )
            chosen = np.argsort(-counts, kind="stable")[:MOST_STARTS]
            chosen = np.sort(chosen[counts[chosen] >= 2])
            if not len(chosen):
                break
            shared = np.isin(inverse, chosen)
            depths[candidates[shared]] = depth + 1
            places[candidates[shared]] = np.searchsorted(chosen, inverse[shared])
            parents, ends = keys[chosen] >> TOKEN_BITS, keys[chosen] & ((1 << TOKEN_BITS) - 1)
            tables.append(self._longer(_rows(tables[-1] or (), parents), ends))
        return [
            Group(np.flatnonzero(depths == depth), depth, partial(_before, table, places))
            for depth, table in enumerate(tables)
            if (depths == depth).any()
        ]

    def _longer(self, before: Sequence[Before], tokens: np.ndarray) -> list[Before]:
        """Keys and values of beginnings with one more token each."""
        following = self._keyed(tokens, before)
        return [
            (torch.cat([old[0], new[0]], dim=2), torch.cat([old[1], new[1]], dim=2))
            for old, new in zip(before, following, strict=True)
        ]

    @torch.inference_mode()
    def _keyed(self, tokens: np.ndarray, before: Sequence[Before] | None) -> list[Before]:
        rows = np.resize(np.arange(len(tokens)), max(len(tokens), LEAST_ROWS))
        table = torch.from_numpy(tokens[rows])[:, None]
        keyed = self._tower.starting(table, None if before is None else _rows(before, rows))
        return [(key[: len(tokens)].clone(), value[: len(tokens)].clone()) for key, value in keyed]


def _before(table: Sequence[Before] | None, places: np.ndarray, rows: np.ndarray) -> Sequence[Before] | None:
    return None if table is None else _rows(table, places[rows])


def _rows(table: Sequence[Before], places: np.ndarray) -> list[Before]:
    """Rows of a table by their places; the one row of a table that has no other stands for all."""
    if len(table[0][0]) == 1:
        places = np.zeros(len(places), np.int64)
    chosen = torch.from_numpy(places)
    return [(key[chosen], value[chosen]) for key, value in table]
