"""Colours: every mode, depth, profile and kind of transparency becomes the same sRGB over white."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cdkit.pictures.colours import to_rgb
from cdkit.pictures.decoding import Undecodable, decode
from tests.pictures.test_decoding import ramp, saved

P3_FILE = Path(__file__).parents[1] / "cases" / "05-evaluate-other-pixels" / "p3.jpg"


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).picture, dtype=np.int16)


def display_p3() -> bytes:
    with Image.open(P3_FILE) as image:
        return bytes(image.info["icc_profile"])


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of raw rows: Pillow writes neither 16 bits in three colours nor every transparency."""
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    step = len(rows) // height
    lines = b"".join(b"\0" + rows[start : start + step] for start in range(0, len(rows), step))
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


# The left half is clear: it must be white whatever colour is hidden there; the right half is (200, 100, 50), or grey.
COLOUR, GREY = (200, 100, 50), 100


def halves(mode: str) -> Image.Image:
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((*(COLOUR if mode != "LA" else (GREY,) * 3), 255), (4, 0, 8, 4))
    return image.convert(mode)


def palette_of_two() -> Image.Image:
    image = Image.new("P", (8, 4), 0)
    image.putpalette([0, 0, 0, *COLOUR])
    image.paste(1, (4, 0, 8, 4))
    return image


TRANSPARENT: dict[str, tuple[bytes, Any]] = {
    "RGBA in PNG": (saved(halves("RGBA"), "PNG"), COLOUR),
    "RGBA in WebP": (saved(halves("RGBA"), "WEBP", lossless=True, exact=True), COLOUR),
    "RGBA in AVIF": (saved(halves("RGBA"), "AVIF", quality=100, subsampling="4:4:4"), COLOUR),
    "RGBA in TIFF": (saved(halves("RGBA"), "TIFF"), COLOUR),
    "LA in PNG": (saved(halves("LA"), "PNG"), (GREY,) * 3),
    "LA in TIFF": (saved(halves("LA"), "TIFF"), (GREY,) * 3),
    "one entry of a palette": (saved(palette_of_two(), "PNG", transparency=0), COLOUR),
    "levels of a palette": (saved(palette_of_two(), "PNG", transparency=b"\x01\xff"), COLOUR),
    "GIF": (saved(palette_of_two(), "GIF", transparency=0), COLOUR),
    "one colour": (saved(halves("RGBA").convert("RGB"), "PNG", transparency=(0, 0, 0)), COLOUR),
    "one grey": (saved(halves("LA").convert("L"), "PNG", transparency=0), (GREY,) * 3),
    "one grey of 16 bits": (
        png(8, 4, 16, 0, struct.pack(">8H", *[7] * 4, *[GREY * 257] * 4) * 4, (b"tRNS", b"\0\x07")),
        (GREY,) * 3,
    ),
    "one colour of 16 bits": (
        png(
            *(8, 4, 16, 2, struct.pack(">24H", *[0x1234] * 12, *[level * 257 for level in COLOUR] * 4) * 4),
            (b"tRNS", struct.pack(">3H", 0x1234, 0x1234, 0x1234)),
        ),
        COLOUR,
    ),
    "one grey of 4 bits": (png(8, 4, 4, 0, b"\x33\x33\x66\x66" * 4, (b"tRNS", b"\0\x03")), (6 * 17,) * 3),
    "one grey of 2 bits": (png(8, 4, 2, 0, b"\x55\xaa" * 4, (b"tRNS", b"\0\x01")), (170,) * 3),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white_whatever_says_so(name: str) -> None:
    content, colour = TRANSPARENT[name]
    found = pixels(content)
    assert np.abs(found[:, :3] - 255).max() <= 1
    assert np.abs(found[:, 5:] - np.array(colour)).max() <= 2


def test_premultiplied_colours_are_taken_apart() -> None:
    half = Image.new("RGBA", (8, 8), (200, 100, 50, 128))
    straight = pixels(saved(half, "PNG"))
    levels = (np.asarray(half).astype(float) * 128 / 255).round().astype(np.uint8)
    levels[..., 3] = 128
    assert np.abs(pixels(tiff(levels.tobytes(), (8, 8), [8] * 4, 2, associated=True)) - straight).max() <= 2
    for plain, mode in (("RGBA", "RGBa"), ("LA", "La")):
        straight = np.asarray(to_rgb(half.convert(plain)), dtype=np.int16)
        assert np.abs(np.asarray(to_rgb(half.convert(plain).convert(mode)), dtype=np.int16) - straight).max() <= 2


def test_half_transparent_lies_half_over_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert np.abs(pixels(saved(image, "PNG")) - 127).max() <= 1
    assert (pixels(saved(Image.new("RGBA", (8, 8), (*COLOUR, 255)), "PNG")) == COLOUR).all()


def test_a_profile_counts_under_transparency_and_behind_a_palette() -> None:
    profile = display_p3()
    opaque = pixels(saved(Image.new("RGB", (16, 16), (200, 60, 59)), "PNG", icc_profile=profile))
    assert np.abs(opaque - [219, 37, 48]).max() <= 3
    clear = Image.new("RGBA", (16, 16), (200, 60, 59, 255))
    clear.putpixel((0, 0), (1, 2, 3, 0))
    for content in (
        saved(clear, "PNG", icc_profile=profile),
        saved(clear, "WEBP", icc_profile=profile, lossless=True),
        saved(clear, "TIFF", icc_profile=profile),
    ):
        found = pixels(content)
        assert (found[0, 0] == 255).all()
        assert (found[1:] == opaque[1:]).all()
    palette = Image.new("RGB", (16, 16), (200, 60, 59)).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    assert (pixels(saved(palette, "PNG", icc_profile=profile)) == opaque).all()


def test_a_profile_of_srgb_changes_no_pixel_and_its_name_proves_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (pixels(saved(ramp(), "PNG", icc_profile=srgb)) == np.asarray(ramp(), dtype=np.int16)).all()
    liar = display_p3()
    assert b"sRGB" not in liar
    named = liar.replace(b"Display P3", b"sRGB lies!") if b"Display P3" in liar else liar + b"sRGB"
    assert np.abs(pixels(saved(ramp(), "PNG", icc_profile=named)) - np.asarray(ramp(), dtype=np.int16)).max() > 10


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile",
        bytes(5000),
        display_p3()[:200],
        display_p3()[:36] + b"xxxx" + display_p3()[40:],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes(),
    ],
)
def test_a_profile_that_is_broken_or_of_other_colours_says_nothing(profile: bytes) -> None:
    for image in (ramp(), ramp().convert("L"), ramp().convert("CMYK")):
        kind = "TIFF" if image.mode == "CMYK" else "PNG"
        without = pixels(saved(image, kind))
        assert (pixels(saved(image, kind, icc_profile=profile)) == without).all()


def profile_of(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 with a white point, a name and these tags."""
    white = struct.pack(">iii", 63190, 65536, 54061)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"made\0" + bytes(79)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + white, **tags}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    rest = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I", 128 + len(rest)) + bytes(4) + b"\x02\x40\0\0" + kind + space + connection + bytes(12)
    return head + b"acsp" + bytes(28) + white + bytes(48) + rest


def grey_profile(gamma: float) -> bytes:
    """Grey with one curve, as scanners and Photoshop write it."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return profile_of(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def ink_profile(cyan: int) -> bytes:
    """A press whose cyan is a grey of this lightness, and any other ink black: unlike all that Pillow would guess."""
    nodes = [255, *[0] * 7, cyan, *[0] * 7]
    table = b"".join(bytes([lightness, 128, 128]) for lightness in nodes)
    straight = bytes(range(256))
    identity = struct.pack(">9i", *[65536 if place % 4 == 0 else 0 for place in range(9)])
    lookup = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + straight * 4 + table + straight * 3
    return profile_of(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lookup})


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_the_profile_of_inks_counts(kind: str) -> None:
    page = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert np.abs(pixels(saved(page, kind, quality=100)) - [0, 255, 255]).max() <= 2
    for cyan, expected in ((128, 119), (200, 191)):
        found = pixels(saved(page, kind, icc_profile=ink_profile(cyan), quality=100))
        assert np.abs(found - expected).max() <= 6, found[0, 0]


def test_the_profile_of_a_grey_picture_counts() -> None:
    grey = ramp().convert("L")
    plain = pixels(saved(grey, "PNG"))
    linear = pixels(saved(grey, "PNG", icc_profile=grey_profile(1.0)))
    assert linear.mean() > plain.mean() + 20, "linear light is brighter than its numbers"
    assert (linear[..., 0] == linear[..., 2]).all()
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.abs(pixels(saved(sixteen, "PNG", icc_profile=grey_profile(1.0))) - linear).max() <= 1
    # A grey picture that carries a profile of colours is read as it is.
    assert (pixels(saved(grey, "PNG", icc_profile=display_p3())) == plain).all()


def test_lab_becomes_rgb() -> None:
    target = io.BytesIO()
    ImageCms.applyTransform(
        ramp(),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    ).save(target, "TIFF")
    assert np.abs(pixels(target.getvalue()) - np.asarray(ramp(), dtype=np.int16)).mean() < 3


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_grey_in_both_orders(order: str, compression: str | None) -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    image = Image.fromarray(values.astype(f"{order}u2"))
    found = pixels(saved(image, "TIFF", compression=compression))[..., 0]
    assert np.abs(found - values / 257).max() <= 1


def test_sixteen_bits_of_colour() -> None:
    levels = np.stack([np.linspace(0, 65535, 64)] * 3, axis=-1)
    for content in (
        png(64, 1, 16, 2, levels.astype(">u2").tobytes()),
        tiff(levels.astype("<u2").tobytes(), (64, 1), [16] * 3, 2),
    ):
        assert np.abs(pixels(content)[0, :, 1] - np.linspace(0, 255, 64)).max() <= 1


def tiff(data: bytes, size: tuple[int, int], bits: list[int], photometric: int, associated: bool = False) -> bytes:
    """A TIFF of raw rows, as Pillow does not write them."""
    behind = 8 + len(data)
    depth = behind if len(bits) > 1 else bits[0]
    entries = [(256, 4, 1, size[0]), (257, 4, 1, size[1]), (258, 3, len(bits), depth), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, len(bits)), (278, 4, 1, size[1])]
    entries += [(279, 4, 1, len(data)), *([(338, 3, 1, 1)] if associated else [])]
    depths = struct.pack(f"<{len(bits)}H", *bits) if len(bits) > 1 else b""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", behind + len(depths)) + data + depths + directory + bytes(4)


def test_white_that_is_zero_is_white() -> None:
    values = np.linspace(0, 65535, 64 * 4).reshape(4, 64).round()
    data = values.astype("<u2").tobytes()
    assert np.abs(pixels(tiff(data, (64, 4), [16], 1))[..., 0] - values / 257).max() <= 1
    assert np.abs(pixels(tiff(data, (64, 4), [16], 0))[..., 0] - (255 - values / 257)).max() <= 1
    eight = (values / 257).astype(np.uint8)
    assert (pixels(tiff(eight.tobytes(), (64, 4), [8], 0))[..., 0] == 255 - eight).all()


def test_twelve_bits_have_their_own_white() -> None:
    values = np.linspace(0, 4095, 64 * 4).reshape(4, 64).round().astype(int)
    packed = bytearray()
    for first, second in values.reshape(-1, 2):
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    assert np.abs(pixels(tiff(bytes(packed), (64, 4), [12], 1))[..., 0] - values / 4095 * 255).max() <= 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_damage(wrong: float) -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    assert (pixels(saved(Image.fromarray(values), "TIFF")) == 128).all()
    values[3, 4] = wrong
    with pytest.raises(Undecodable, match="NaN") as caught:
        decode(saved(Image.fromarray(values), "TIFF"))
    assert caught.value.reason == "damaged"


def test_integers_of_32_bits_are_scaled_by_what_they_hold() -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8)
    whole = Image.fromarray(values.round().astype(np.int32))
    assert np.abs(pixels(saved(whole, "TIFF"))[..., 0] - values / 257).max() <= 1
