"""What captions begin with alike is run once: under causal attention no token depends on what follows it.

On a CPU, where the tokens of a caption are what its embedding costs, that saves a tenth of the work. A GPU's causal
kernels need no mask as long as queries and keys are the same tokens, which is worth more there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cdkit.encoders.causal_tower import Before, CausalTower
from cdkit.encoders.tokenizing import Tokens

# Keys and values of more beginnings than this would fill a small machine's memory.
MOST_STARTS = 1024
# A product of one row may depend on where the weights lie in memory; of several rows it does not.
LEAST_ROWS = 16


@dataclass(frozen=True)
class Group:
    """Captions of a window that leave out as many first tokens; before: what those are to the others, by rows."""

    rows: np.ndarray
    skipped: int
    before: Callable[[np.ndarray], Sequence[Before] | None]


class SharedStarts:
    """Keys and values of the start token, and of the words that several captions of a window begin with."""

    def __init__(self, tower: CausalTower, start_token: int, end_tokens: Sequence[int]) -> None:
        self._tower = tower
        self._token = start_token
        self._ends = np.array(end_tokens)
        self._start = self._keyed(np.array([start_token]), None)

    def groups(self, tokens: Tokens) -> list[Group]:
        """A window's captions by what of them is run: all, all but the start token, all but their first word too."""
        first, lengths = tokens.starts[:-1], tokens.lengths
        starts_alike = (lengths >= 2) & (tokens.ids[first] == self._token)
        words = tokens.ids[np.minimum(first + 1, len(tokens.ids) - 1)]
        # The token that is pooled has to be run.
        has_word = starts_alike & (lengths >= 3) & ~np.isin(words, self._ends)
        common, counts = np.unique(words[has_word], return_counts=True)
        most = np.sort(np.argsort(-counts, kind="stable")[:MOST_STARTS])
        common = common[most][counts[most] >= 2]
        has_common = has_word & np.isin(words, common)
        groups = [
            Group(np.flatnonzero(~starts_alike), 0, lambda _: None),
            Group(np.flatnonzero(starts_alike & ~has_common), 1, lambda _: self._start),
        ]
        if has_common.any():
            table = self._with_words(common)

            def before(rows: np.ndarray) -> list[Before]:
                places = torch.from_numpy(np.searchsorted(common, words[rows]))
                return [(key[places], value[places]) for key, value in table]

            groups.append(Group(np.flatnonzero(has_common), 2, before))
        return [group for group in groups if len(group.rows)]

    def _with_words(self, words: np.ndarray) -> list[Before]:
        """Keys and values of the start token and each word, [words, heads, 2, width of a head], at every block."""
        following = self._keyed(words, self._start)
        return [
            tuple(torch.cat([one.expand(len(words), -1, -1, -1), two], dim=2) for one, two in zip(*pair, strict=True))
            for pair in zip(self._start, following, strict=True)
        ]  # type: ignore[misc]

    @torch.inference_mode()
    def _keyed(self, tokens: np.ndarray, before: Sequence[Before] | None) -> list[Before]:
        rows = np.resize(tokens, max(len(tokens), LEAST_ROWS))
        keyed = self._tower.starting(torch.from_numpy(rows)[:, None], before)
        return [(key[: len(tokens)].clone(), value[: len(tokens)].clone()) for key, value in keyed]
