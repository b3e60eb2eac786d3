"""Which picture each sample of a run shows, and its random numbers: functions of numbers alone, no state.

A sample follows from (seed, step, its place in the step's whole batch), whichever process or accumulation step makes
it: that is what makes accumulation, several processes and resuming exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Choice:
    """What one sample shows: the concept's number, whether a regularization image, and which picture."""

    concept: int
    is_regularization: bool
    item: int


@dataclass(frozen=True)
class Order:
    """The sequence of all samples of a run. photos, images: how many each concept has; images may be 0."""

    photos: Sequence[int]
    images: Sequence[int]
    seed: int

    def choice(self, position: int) -> Choice:
        """The sample at a place of the whole run.

        Targets and regularization images alternate where there are any; concepts take turns whatever their counts;
        a concept's pictures come in a new random order each time all have been seen.
        """
        with_images = [number for number, count in enumerate(self.images) if count]
        is_regularization = bool(with_images) and position % 2 == 1
        turn = position // 2 if with_images else position
        concepts = with_images if is_regularization else range(len(self.photos))
        concept = concepts[turn % len(concepts)]
        count = (self.images if is_regularization else self.photos)[concept]
        epoch, place = divmod(turn // len(concepts), count)
        order = _shuffled(self.seed, is_regularization, concept, epoch, count)
        return Choice(concept, is_regularization, order[place])


@lru_cache(maxsize=64)
def _shuffled(seed: int, is_regularization: bool, concept: int, epoch: int, count: int) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, 1, int(is_regularization), concept, epoch])
    return tuple(int(index) for index in rng.permutation(count))


def sample_generator(seed: int, step: int, sample: int) -> np.random.Generator:
    """The generator of everything random about one sample."""
    return np.random.default_rng([seed, 2, step, sample])
