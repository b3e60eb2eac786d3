"""Near-duplicates: the set answers as a plain loop does, copies of a picture stay near, other pictures do not."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cdkit.pictures.picture import NEAR, NearHashes, mirrored_hash, names_alike, perceptual_hash
from tests.support.photo_pool import picture, real_photos

HASHES = st.integers(0, 2**64 - 1)


@given(st.lists(HASHES, max_size=100), st.lists(HASHES, max_size=20), HASHES, st.integers(0, 32))
def test_the_set_answers_as_a_loop_does(first: list[int], added: list[int], asked: int, distance: int) -> None:
    known = NearHashes(distance, first)
    for value in added:
        known.add(value)
    assert (asked in known) == any(bin(asked ^ value).count("1") <= distance for value in [*first, *added])


@given(HASHES, st.sets(st.integers(0, 63), max_size=10))
def test_the_distance_is_the_number_of_bits(value: int, bits: set[int]) -> None:
    other = value
    for bit in bits:
        other ^= 1 << bit
    assert (other in NearHashes(NEAR, [value])) == (len(bits) <= NEAR)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_copies_are_near_and_others_are_not() -> None:
    known = NearHashes(NEAR)
    for seed in range(40):
        assert perceptual_hash(opened(picture(seed))) not in known
        known.add(perceptual_hash(opened(picture(seed))))
    for seed in range(40):
        image = opened(picture(seed))
        assert perceptual_hash(image.resize((500, 400))) in known
        assert perceptual_hash(ImageEnhance.Brightness(image).enhance(1.1)) in known
        assert perceptual_hash(opened(picture(seed, "WEBP"))) in known
        assert mirrored_hash(image) not in known
        assert mirrored_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) in known


@pytest.mark.real
def test_real_photos_are_told_apart() -> None:
    photos = [photo for photo in real_photos() if "caltech101" not in str(photo.path)]
    known = NearHashes(NEAR)
    near = 0
    for photo in photos:
        value = perceptual_hash(Image.open(photo.path).convert("RGB"))
        near += value in known
        known.add(value)
    assert len(photos) == 140
    assert near == 0


def test_groups_of_near_hashes_grow_together() -> None:
    named = [("a", 0), ("far", (1 << 64) - 1), ("b", 0b111111), ("c", 0b111)]
    assert names_alike(named, 4) == [["a", "b", "c"]]
    assert names_alike(named, 2) == []
    assert names_alike([], 4) == []
