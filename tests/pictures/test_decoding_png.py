"""PNG files with large texts and profiles are pictures; what is unpacked on the way stays bounded."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cdkit.pictures.decoding import decode, without_large_texts
from tests.pictures.test_colours import display_p3, pixels, png
from tests.pictures.test_decoding import ramp, saved

PLAIN = saved(ramp(), "PNG")


def with_chunks(*chunks: tuple[bytes, bytes], behind: bool = False) -> bytes:
    """The plain picture with chunks after its header, or behind its pixels."""
    place = PLAIN.index(b"IEND") - 4 if behind else 33
    made = png(1, 1, 8, 0, b"\0", *chunks)
    start, end = 33, made.index(b"IDAT") - 4
    return PLAIN[:place] + made[start:end] + PLAIN[place:]


def packed_text(size: int) -> bytes:
    return b"parameters\0\0" + zlib.compress(b"steps: 20, " * (size // 11))


LARGE: dict[str, list[tuple[bytes, bytes]]] = {
    "a packed text": [(b"zTXt", packed_text(5 << 20))],
    "an international text": [(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(range(32, 127)) * 40_000))],
    "a plain text": [(b"tEXt", b"workflow\0" + b"x" * (80 << 20))],
    "many texts": [(b"zTXt", packed_text(1_000_000))] * 80,
    "a bomb": [(b"zTXt", b"a\0\0" + zlib.compress(bytes(500 << 20)))],
    "a profile that is none": [(b"iCCP", b"p\0\0" + zlib.compress(bytes(3 << 20)))],
    "a profile that is a bomb": [(b"iCCP", b"p\0\0" + zlib.compress(bytes(500 << 20)))],
}


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", LARGE)
def test_a_picture_with_large_texts_is_a_picture(name: str, behind: bool) -> None:
    content = with_chunks(*LARGE[name], behind=behind)
    tracemalloc.start()
    found = pixels(content)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == np.asarray(ramp(), dtype=np.int16)).all()
    assert most < len(content) * 2 + (40 << 20)


def test_a_large_profile_is_applied() -> None:
    profile = display_p3()
    # The profile's own length, and 2 MB of a tag nobody reads.
    large = (len(profile) + (2 << 20)).to_bytes(4) + profile[4:] + bytes(2 << 20)
    chunk = (b"iCCP", b"Display P3\0\0" + zlib.compress(large))
    content = png(4, 1, 8, 2, bytes([200, 60, 59]) * 4, chunk)
    assert np.abs(pixels(content) - [219, 37, 48]).max() <= 3


def test_pillows_limits_stay_as_they_were() -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS
    decode(with_chunks(*LARGE["a packed text"]))
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, Image.MAX_IMAGE_PIXELS)


def test_what_is_small_stays() -> None:
    small = with_chunks((b"zTXt", packed_text(5000)), (b"iCCP", b"p\0\0" + zlib.compress(display_p3())))
    assert without_large_texts(small) == (small, None)


@pytest.mark.parametrize("length", [0, 8, 20, 40, 60, 200, len(PLAIN) - 5])
def test_a_file_that_is_cut_short_stays_so(length: int) -> None:
    assert without_large_texts(PLAIN[:length]) == (PLAIN[:length], None)
    huge = PLAIN[:33] + b"\xff\xff\xff\xffzTXt" + PLAIN[33:]
    assert without_large_texts(huge)[1] is None
