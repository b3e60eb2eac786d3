"""Decoding: every mode and format becomes RGB, everything else a reason, nothing an exception of the libraries."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdkit.pictures.decoding import Undecodable, decode, encode, is_blank
from cdkit.pictures.folder import FORMATS


def ramp(width: int = 64, height: int = 48) -> Image.Image:
    """A picture that is different everywhere: red grows to the right, green downwards."""
    across = np.linspace(0, 255, width, dtype=np.uint8)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([across, down, np.full_like(across, 90)], axis=2))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format=kind, **options)
    return target.getvalue()


def pixels(content: bytes, max_side: int = 1024) -> np.ndarray:
    picture = decode(content, max_side).picture
    assert picture.mode == "RGB"
    assert picture.info == {}
    return np.asarray(picture, dtype=np.int16)


def close(found: np.ndarray, expected: Image.Image, most: float) -> bool:
    return float(np.abs(found - np.asarray(expected.convert("RGB"), dtype=np.int16)).mean()) <= most


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_web_decodes(kind: str) -> None:
    assert close(pixels(saved(ramp(), kind)), ramp(), 12 if kind == "GIF" else 4)


def test_other_formats_are_never_tried() -> None:
    for kind in ("PPM", "ICO", "TGA", "PCX"):
        with pytest.raises(Undecodable, match="not_an_image"):
            decode(saved(ramp(), kind), 1024)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_an_image"),
        (b"just some text", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><rect width='9' height='9'/></svg>", "not_raster"),
        (b"<?xml version='1.0'?>\n<svg/>", "not_raster"),
        (b"%PDF-1.7 ...", "not_raster"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not_raster"),
        (b"<!DOCTYPE html><p>gone", "not_raster"),
        (saved(ramp(), "JPEG")[:-200], "truncated"),
        (saved(ramp(), "PNG")[:-60], "truncated"),
        (saved(ramp(), "JPEG")[:10], "damaged"),
    ],
)
def test_what_is_no_image_has_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(content, 1024)
    assert caught.value.reason == reason


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (13_500, 13_500), (2**31 - 1, 1)])
def test_bombs_are_told_by_their_header(size: tuple[int, int]) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(png_header(*size), 1024)
    assert caught.value.reason == "too_many_pixels"


def test_modes_become_rgb() -> None:
    grey = ramp().convert("L")
    for image, expected, most in (
        (ramp().convert("P", palette=Image.Palette.ADAPTIVE, colors=256), ramp(), 8),
        (grey, grey, 0),
        (ramp().convert("1"), ramp().convert("1"), 0),
    ):
        assert close(pixels(saved(image, "PNG")), expected, most), image.mode
    assert close(pixels(saved(ramp().convert("CMYK"), "JPEG", quality=95)), ramp(), 4)
    assert close(pixels(saved(ramp().convert("CMYK"), "TIFF")), ramp(), 2)


def test_sixteen_bits_are_scaled_not_cut() -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64)
    expected = Image.fromarray((values / 257).astype(np.uint8))
    sixteen = Image.fromarray(values.astype(np.uint16))
    assert close(pixels(saved(sixteen, "PNG")), expected, 1)
    assert close(pixels(saved(sixteen, "TIFF")), expected, 1)
    floats = Image.fromarray((values / 65535).astype(np.float32))
    assert close(pixels(saved(floats, "TIFF")), expected, 1)


def test_transparency_lies_over_white() -> None:
    image = ramp().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (pixels(saved(image, "PNG")) == 255).all()
    palette = ramp().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    clear = palette.getpixel((0, 0))
    found = pixels(saved(palette, "PNG", transparency=clear))
    assert (found[np.asarray(palette) == clear] == 255).all()
    assert not (found == 255).all()


def test_the_orientation_is_applied_and_a_mangled_one_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = pixels(saved(ramp(), "JPEG", exif=exif, quality=95))
    assert turned.shape == (64, 48, 3)
    assert close(turned, ramp().transpose(Image.Transpose.ROTATE_270), 4)
    mangled = exif.tobytes()[:-6] + b"\xff" * 6
    assert pixels(saved(ramp(), "JPEG", exif=mangled)).shape[2] == 3


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [ramp(), Image.new("RGB", (64, 48), "blue"), Image.new("RGB", (64, 48), "red")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
        assert close(pixels(content), ramp(), 12), kind


def test_a_profile_of_another_colour_space_is_applied() -> None:
    from PIL import ImageCms

    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert pixels(saved(ramp(), "PNG", icc_profile=lab)).shape == (48, 64, 3)
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert close(pixels(saved(ramp(), "PNG", icc_profile=plain)), ramp(), 0)
    assert close(pixels(saved(ramp(), "PNG", icc_profile=b"no profile")), ramp(), 0)


def test_large_pictures_are_shrunk_small_ones_never_grown() -> None:
    large = ramp(900, 300)
    for kind in ("JPEG", "PNG"):
        assert pixels(saved(large, kind), 300).shape == (100, 300, 3)
    assert pixels(saved(ramp(), "PNG"), 300).shape == (48, 64, 3)
    assert pixels(saved(ramp(2000, 2), "PNG"), 100).shape == (1, 100, 3)


def test_drawings_are_stored_as_they_are_photos_as_jpeg() -> None:
    drawing = Image.new("RGB", (64, 64), "white")
    drawing.paste((255, 0, 0), (10, 10, 30, 30))
    content, suffix = encode(decode(saved(drawing, "PNG"), 1024))
    assert suffix == "png"
    assert close(pixels(content), drawing, 0)
    for source in (saved(drawing, "JPEG"), saved(ramp(200, 200), "PNG")):
        content, suffix = encode(decode(source, 1024))
        assert suffix == "jpg"
    exif = Image.Exif()
    exif[0x010E] = "where somebody lives"
    content, _ = encode(decode(saved(ramp(200, 200), "JPEG", exif=exif, comment=b"secret"), 1024))
    assert b"lives" not in content
    assert b"secret" not in content


def test_one_colour_is_blank_whatever_the_compression() -> None:
    noise = np.random.default_rng(0).normal(0, 3, (200, 200, 3))
    assert is_blank(Image.fromarray(np.clip(120 + noise, 0, 255).astype(np.uint8)))
    assert is_blank(decode(saved(Image.new("L", (90, 90), 255), "JPEG"), 1024).picture)
    assert not is_blank(ramp())
    dot = Image.new("RGB", (200, 200), "white")
    dot.paste((0, 0, 0), (80, 80, 110, 110))
    assert not is_blank(dot)


WHOLE = {kind: saved(ramp(20, 16), kind) for kind in FORMATS}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_damage_never_gives_anything_but_a_picture_or_a_reason(kind: str, data: st.DataObject) -> None:
    content = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        assert decode(bytes(content), 64).picture.mode == "RGB"
    except Undecodable as problem:
        assert problem.reason in {"not_raster", "not_an_image", "too_many_pixels", "truncated", "damaged"}
