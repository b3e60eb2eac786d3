from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cdkit.training.batches import Order, sample_generator


def test_concepts_are_sampled_evenly_whatever_their_photo_counts() -> None:
    order = Order(photos=[4, 15, 7], images=[200, 0, 50], seed=3)
    choices = [order.choice(position) for position in range(2 * 420)]
    targets = [choice for choice in choices if not choice.is_regularization]
    images = [choice for choice in choices if choice.is_regularization]
    assert len(targets) == len(images) == 420
    assert Counter(choice.concept for choice in targets) == {0: 140, 1: 140, 2: 140}
    assert Counter(choice.concept for choice in images) == {0: 210, 2: 210}, "the second concept has no images"
    photos = Counter(choice.item for choice in targets if choice.concept == 0)
    assert set(photos.values()) == {35}, "140 samples of 4 photos"


def test_every_picture_is_seen_once_before_any_is_seen_again_and_in_a_new_order() -> None:
    order = Order(photos=[6], images=[0], seed=0)
    items = [order.choice(position).item for position in range(60)]
    epochs = [items[start : start + 6] for start in range(0, 60, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_without_regularization_every_sample_is_a_target() -> None:
    order = Order(photos=[3, 5], images=[0, 0], seed=0)
    choices = [order.choice(position) for position in range(40)]
    assert not any(choice.is_regularization for choice in choices)
    assert Counter(choice.concept for choice in choices) == {0: 20, 1: 20}


def test_half_of_a_batch_of_eight_is_regularization() -> None:
    order = Order(photos=[5], images=[200], seed=0)
    for step in range(10):
        kinds = [order.choice(8 * step + sample).is_regularization for sample in range(8)]
        assert sum(kinds) == 4


@pytest.mark.parametrize("other", [(1, 2, 4), (1, 3, 3), (2, 2, 3)])
def test_random_numbers_follow_from_seed_step_and_sample(other: tuple[int, int, int]) -> None:
    first, again = (sample_generator(1, 2, 3).standard_normal(5) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, sample_generator(*other).standard_normal(5))
