"""Bytes to an RGB picture: every pixel decoded, upright, first frame, in sRGB, over white, at most so many pixels.

One set of rules for photos, samples, references and downloads, so that what is trained on is what is measured.
"""

from __future__ import annotations

import io
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from cdkit.core.errors import InputError
from cdkit.pictures.colours import stored_facts, to_rgb
from cdkit.pictures.folder import EXACT_FORMATS, HINTS, START, foreign_kind, picture_format

# Counts up whenever some file would be decoded to other pixels than before: what was computed from pixels names it.
RULES = 2
# Where Pillow stops too: an RGB picture of this size takes 720 MB.
MAX_PIXELS = 178_956_970
# A picture of more colours is a photo, however it came.
MOST_COLOURS = 4096
JPEG_QUALITY = 95
# Of 256 levels, over the picture shrunk to 32 × 32.
BLANK_DEVIATION = 2.5
# What describes a picture, or a page, instead of holding one.
_NOT_RASTER = (b"<svg", b"<!doctype", b"<html", b"%pdf", b"%!ps", b"<?xml")
# Of a PNG file.
_SIGNATURE_BYTES = 8
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Below Pillow's own limits: of one text, and of all together.
TEXT_BYTES, ALL_TEXT_BYTES = 1 << 20, 8 << 20
# Profiles of scanners and printers have a few megabytes.
PROFILE_BYTES = 16 << 20


class Undecodable(Exception):
    """Bytes that are no usable image. reason: not_raster, not_an_image, too_many_pixels, truncated or damaged."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Decoded:
    """An RGB picture without metadata. exact: it came in a lossless format and keeps its pixels."""

    picture: Image.Image
    exact: bool


def decode(content: bytes, max_side: int | None = None, *, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode the first frame completely; pictures with a longer side than max_side are shrunk to it.

    Raises Undecodable, or MemoryError when there is not enough.
    """
    profile: bytes | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            kind = _format(content)
            if kind == "PNG":
                content, profile = without_large_texts(content)
            source = Image.open(io.BytesIO(content), formats=(kind,))
            _check_size(source, max_pixels)
            shrunk = max_side is not None and max(source.size) > max_side
            if shrunk and max_side is not None:
                # JPEG can be decoded at a fraction of its size.
                source.draft(None, _fitting(source, max_side))
            stored = stored_facts(source, profile)
            source.load()
            picture = to_rgb(_upright(source), stored)
            if shrunk and max_side is not None:
                picture = picture.resize(_fitting(picture, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        except (MemoryError, Undecodable):
            raise
        except Image.DecompressionBombError as error:
            raise Undecodable("too_many_pixels", str(error)[:200]) from error
        except Exception as error:
            reason = "truncated" if "truncated" in str(error) else "damaged"
            raise Undecodable(reason, f"{type(error).__name__}: {error}"[:200]) from error
        picture.info.clear()
        return Decoded(picture, kind in EXACT_FORMATS and not shrunk)


def _format(content: bytes) -> str:
    start = content[:START]
    kind = picture_format(start)
    if kind is None:
        raster = not any(mark in content[:1024].lower() for mark in _NOT_RASTER)
        kind_named = foreign_kind(start) or ("no format of pictures" if content else "it is empty")
        raise Undecodable("not_an_image" if raster else "not_raster", kind_named)
    return kind


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width} × {image.height}"
    if image.width * image.height > max_pixels:
        raise Undecodable("too_many_pixels", f"{size}, at most {max_pixels:,} are read")
    if image.width < 1 or image.height < 1:
        raise Undecodable("damaged", size)


def _upright(image: Image.Image) -> Image.Image:
    # A mangled orientation says nothing; the picture stays as it is.
    with suppress(OSError, ValueError, KeyError, TypeError, SyntaxError, AttributeError):
        return ImageOps.exif_transpose(image)
    return image


def _fitting(image: Image.Image, max_side: int) -> tuple[int, int]:
    """Width and height in the same ratio, the longer one max_side."""
    scale = max_side / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def open_bytes(content: bytes, name: str, max_side: int | None = None) -> Image.Image:
    """The RGB picture that some bytes are; raises InputError with `name` and what to do when they are none."""
    try:
        return decode(content, max_side).picture
    except MemoryError as error:
        raise InputError(f"{name} takes more memory than there is.", hint="Shrink the picture first.") from error
    except Undecodable as error:
        hint = {
            "too_many_pixels": "Shrink the picture first.",
            "truncated": "It is cut short: copy or download it again, or remove it.",
        }.get(error.reason, HINTS.get(error.detail, "Replace or remove it."))
        raise InputError(f"{name} cannot be read as an image ({error}).", hint=hint) from error


def encode(decoded: Decoded) -> tuple[bytes, str]:
    """The picture as a file, and its suffix: PNG for lossless sources of few colours (drawings), else JPEG."""
    target = io.BytesIO()
    if decoded.exact and decoded.picture.getcolors(MOST_COLOURS) is not None:
        decoded.picture.save(target, format="PNG", compress_level=6)
        return target.getvalue(), "png"
    decoded.picture.save(target, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return target.getvalue(), "jpg"


def is_blank(picture: Image.Image) -> bool:
    """Whether a picture shows one colour, give or take compression noise."""
    small = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), dtype=np.float32)
    return float(small.std(axis=(0, 1)).max()) < BLANK_DEVIATION


def without_large_texts(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG file without the texts and the profile that are too large, and that profile unpacked.

    Pillow refuses the whole file for a text or a profile of more than 1 MB unpacked, by limits that hold for the
    process. The file itself where nothing is to be taken out; None for a profile that stays in
    it, or is larger than 16 MB.
    """
    view = memoryview(content)
    kept, profile, texts, place = [view[:_SIGNATURE_BYTES]], None, 0, _SIGNATURE_BYTES
    while place + 12 <= len(content):
        size, kind = int.from_bytes(view[place : place + 4]), bytes(view[place + 4 : place + 8])
        end = place + 12 + size
        data = view[place + 8 : end - 4]
        keep = True
        if kind in _TEXTS:
            unpacked = _text_size(kind, bytes(data))
            texts += unpacked
            keep = unpacked <= TEXT_BYTES and texts <= ALL_TEXT_BYTES
        elif kind == b"iCCP":
            packed = bytes(data).partition(b"\0")[2][1:]
            keep = len(_unpacked(packed, TEXT_BYTES)) <= TEXT_BYTES
            if not keep:
                whole = _unpacked(packed, PROFILE_BYTES)
                profile = whole if len(whole) <= PROFILE_BYTES else None
        if keep:
            kept.append(view[place:end])
        place = end
    kept.append(view[place:])
    taken_out = sum(map(len, kept)) < len(content)
    return (b"".join(kept) if taken_out else content), profile


def _text_size(kind: bytes, data: bytes) -> int:
    """Bytes of a text, those unpacked that are packed; counted to just over the limit."""
    rest = data.partition(b"\0")[2]
    if kind == b"zTXt":
        return len(_unpacked(rest[1:], TEXT_BYTES))
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        return len(_unpacked(packed, TEXT_BYTES))
    return len(data)


def _unpacked(packed: bytes, most: int) -> bytes:
    """What zlib unpacks, up to a byte more than `most`; as far as it goes where the data are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most + 1)
    except zlib.error:
        return b""
