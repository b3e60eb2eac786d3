"""Measures by pixels: sharp from blurred, placeholders from pictures, pages of text from photos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cdkit.pictures.measures import SIDE, flat_share, sharpness, text_share
from tests.support.photo_pool import real_photos

WORDS = "the quick brown fox jumps over a lazy dog while the images of every class are being fetched"


def page(size: int, *, ink: str = "black", paper: str = "white", width: int = 800, height: int = 600) -> Image.Image:
    picture = Image.new("RGB", (width, height), paper)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    letters = int(width / size * 1.7)
    for number, top in enumerate(range(10, height, int(size * 1.4))):
        line = (WORDS * 4)[number * 7 % 50 :][:letters]
        draw.text((20, top), line, font=font, fill=ink)
    return picture


def placeholder() -> Image.Image:
    picture = Image.new("RGB", (400, 300), "#dddddd")
    ImageDraw.Draw(picture).text((100, 140), "Image not available", font=ImageFont.load_default(22), fill="#888888")
    return picture


def photos(count: int) -> list[Image.Image]:
    every = real_photos()
    return [Image.open(photo.path).convert("RGB") for photo in every[:: len(every) // count][:count]]


def test_a_blurred_photo_is_told_from_a_sharp_one() -> None:
    for photo in photos(12):
        assert sharpness(photo) > 60
        assert sharpness(photo.filter(ImageFilter.GaussianBlur(max(photo.size) / 100))) < 20


def test_a_placeholder_is_nearly_one_colour_and_photos_are_not() -> None:
    assert flat_share(placeholder()) > 0.95
    assert sorted(map(flat_share, photos(12)))[-2] < 0.9


@pytest.mark.parametrize("size", [12, 16, 24, 36, 48])
def test_pages_of_any_size_of_letters_are_text(size: int) -> None:
    assert text_share(page(size)) > 0.15
    assert text_share(page(size, ink="white", paper="#222244")) > 0.15


def test_photos_are_not_text() -> None:
    assert max(map(text_share, photos(24))) < 0.15
    assert text_share(placeholder()) < 0.15


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_any_picture_has_measures_in_their_range(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert sharpness(picture) >= 0
    assert 0 < flat_share(picture) <= 1
    assert 0 <= text_share(picture) <= 1


def test_one_colour_is_flat_and_not_sharp_and_the_size_does_not_matter() -> None:
    one = Image.new("RGB", (300, 200), "#336699")
    assert (sharpness(one), flat_share(one), text_share(one)) == (0.0, 1.0, 0.0)
    small = photos(1)[0].resize((SIDE, SIDE))
    large = small.resize((4 * SIDE, 4 * SIDE), Image.Resampling.NEAREST)
    assert sharpness(large) == pytest.approx(sharpness(small), rel=0.01)
