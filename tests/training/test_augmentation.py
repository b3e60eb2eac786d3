from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cdkit.training.augmentation import (
    FAR_WORDS,
    NEAR_WORDS,
    Placement,
    draw_placement,
    place,
    valid_region,
    with_words,
)
from cdkit.training.loss import masked_error

SIZES = st.integers(8, 128).map(lambda cells: 8 * cells)


def _photo(side: int) -> torch.Tensor:
    """Random colours, none close to the canvas' grey."""
    values = torch.randint(0, 100, (3, side, side), generator=torch.Generator().manual_seed(side))
    return values.to(torch.uint8)


@given(SIZES, st.integers(0, 10_000), st.sampled_from([4, 8]))
def test_mask_words_and_side_agree_and_the_loss_is_finite(size: int, seed: int, factor: int) -> None:
    placement = draw_placement(np.random.default_rng(seed), size)
    cells = size // factor
    mask = valid_region(placement, size, cells)
    ratio = placement.side / size
    assert 0.4 - 1 / size <= ratio <= 1.4 + 1 / size
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    if ratio >= 1:
        assert mask.min() == 1
        assert (placement.words in NEAR_WORDS) == (ratio > 1)
    else:
        assert (placement.words in FAR_WORDS) == (ratio < 0.6)
        assert placement.words in ("", *FAR_WORDS)
    # One whole cell touched at least, and none that the photo does not reach.
    assert mask.sum() >= 1
    inside = np.zeros((cells, cells), dtype=bool)
    rows, columns = (
        slice(start // factor, -(-(start + placement.side) // factor)) if ratio < 1 else slice(None)
        for start in (placement.top, placement.left)
    )
    inside[rows, columns] = True
    assert not mask[0].bool().numpy()[~inside].any()
    error = torch.full((1, 4, cells, cells), 0.5)
    assert masked_error(error, torch.zeros_like(error), mask.unsqueeze(0)) == pytest.approx(0.25)


@given(st.integers(64, 160), st.integers(0, 10_000))
def test_the_photo_lies_where_the_placement_says(size: int, seed: int) -> None:
    placement = draw_placement(np.random.default_rng(seed), size)
    pixels = place(_photo(40), placement, size)
    assert pixels.shape == (3, size, size)
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    shown = (pixels != 0).any(dim=0)
    expected = torch.zeros(size, size, dtype=torch.bool)
    end = [start + placement.side for start in (placement.top, placement.left)]
    expected[max(0, placement.top) : end[0], max(0, placement.left) : end[1]] = True
    assert shown.equal(expected)


def test_a_photo_of_the_canvas_size_keeps_its_pixels_and_may_be_mirrored() -> None:
    photo = _photo(32)
    pixels = place(photo, Placement(32, 0, 0), 32)
    assert ((pixels + 1) * 127.5).round().to(torch.uint8).equal(photo)
    assert place(photo, Placement(32, 0, 0, flipped=True), 32).equal(pixels.flip(-1))


def test_the_shares_are_the_papers() -> None:
    placements = [draw_placement(np.random.default_rng(seed), 512) for seed in range(6000)]
    sides = np.array([placement.side for placement in placements])
    assert np.mean(sides > 512) == pytest.approx(1 / 3, abs=0.02)
    # Of the two thirds that shrink to 0.4–1, one third is below 0.6.
    assert np.mean(sides < 0.6 * 512) == pytest.approx(2 / 9, abs=0.02)
    assert sides.min() == pytest.approx(0.4 * 512, abs=2)
    assert sides.max() == pytest.approx(1.4 * 512, abs=2)
    for words in (*NEAR_WORDS, *FAR_WORDS):
        assert any(placement.words == words for placement in placements)


def test_the_region_is_inset_by_a_cell_unless_nothing_would_be_left() -> None:
    mask = valid_region(Placement(32, 8, 16), 64, 8)[0]
    assert [int(value) for value in mask.sum(dim=1)] == [0, 0, 2, 2, 0, 0, 0, 0]
    assert [int(value) for value in mask.sum(dim=0)] == [0, 0, 0, 2, 2, 0, 0, 0]
    tiny = valid_region(Placement(13, 8, 16), 64, 8)[0]
    assert tiny.sum() == 4, "two touched cells a side: an inset would leave none"
    assert valid_region(Placement(80, -8, -3), 64, 8).min() == 1


def test_words_come_before_the_caption() -> None:
    assert with_words("very small", "photo of a cat") == "very small photo of a cat"
    assert with_words("", "photo of a cat") == "photo of a cat"
