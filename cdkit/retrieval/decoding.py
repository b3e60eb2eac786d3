"""Bytes from the web to an RGB picture: every pixel decoded, upright, first frame, at most so many pixels.

Runs where a hostile file may do its worst: in a process of cdkit.retrieval.inspectors.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

# Decoders of formats that the web uses for pictures; the others are never let near the bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXACT_FORMATS = frozenset({"PNG", "GIF", "BMP", "TIFF"})
# Pillow's own limit against decompression bombs; an RGB picture of this size takes 360 MB.
MAX_PIXELS = 89_478_485
# A picture of more colours is a photo, however it came.
MOST_COLOURS = 4096
JPEG_QUALITY = 95
# Of 256 levels, over the picture shrunk to 32 × 32.
BLANK_DEVIATION = 2.5
# What is seen at the start of files that describe a picture, or a page, instead of holding one.
_NOT_RASTER = re.compile(rb"<svg|<!doctype|<html|%PDF|%!PS|<\?xml", re.IGNORECASE)


class Undecodable(Exception):
    """Bytes that are no usable image. reason: not_raster, not_an_image, too_many_pixels, truncated or damaged."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Decoded:
    """An RGB picture without metadata. exact: it came in a lossless format and keeps its pixels."""

    picture: Image.Image
    exact: bool


def decode(content: bytes, max_side: int) -> Decoded:
    """Decode the first frame completely; pictures with a longer side than max_side are shrunk to it.

    Raises Undecodable, or MemoryError when there is not enough.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(content)
        exact = image.format in EXACT_FORMATS
        shrunk = max(image.size) > max_side
        try:
            if shrunk:
                # JPEG can be decoded at a fraction of its size.
                image.draft(None, _fitting(image, max_side))
            image.load()
        except MemoryError:
            raise
        except Exception as error:
            reason = "truncated" if "truncated" in str(error) else "damaged"
            raise Undecodable(reason, f"{type(error).__name__}: {error}"[:200]) from error
        # A mangled orientation says nothing; the picture stays as it is.
        with suppress(OSError, ValueError, KeyError, TypeError, SyntaxError, AttributeError):
            image = ImageOps.exif_transpose(image)
        picture = to_rgb(image)
        if shrunk:
            picture = picture.resize(_fitting(picture, max_side), Image.Resampling.LANCZOS, reducing_gap=3.0)
        picture.info.clear()
        return Decoded(picture, exact and not shrunk)


def _fitting(image: Image.Image, max_side: int) -> tuple[int, int]:
    """Width and height in the same ratio, the longer one max_side."""
    scale = max_side / max(image.size)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _open(content: bytes) -> Image.Image:
    """The image with its header read; nothing is decoded yet."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        if found := _NOT_RASTER.search(content[:1024]):
            raise Undecodable("not_raster", found[0].decode("ascii", "replace")) from error
        raise Undecodable("not_an_image") from error
    except Image.DecompressionBombError as error:
        raise Undecodable("too_many_pixels", str(error)[:200]) from error
    except MemoryError:
        raise
    except Exception as error:
        raise Undecodable("damaged", f"{type(error).__name__}: {error}"[:200]) from error
    if image.width * image.height > MAX_PIXELS:
        raise Undecodable("too_many_pixels", f"{image.width} × {image.height}")
    if image.width < 1 or image.height < 1:
        raise Undecodable("damaged", f"{image.width} × {image.height}")
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: 16 bits scaled to 8, colours by their profile, transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return _by_profile(image) or image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as 8 bits; where the format does not say its white, the values do."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    most = float(values.max(initial=0.0))
    if "16" in image.mode:
        white = 65535.0
    else:
        white = next((limit for limit in (1.0, 255.0, 65535.0) if most <= limit), most)
        white = 255.0 if white == 1.0 and image.mode != "F" else white
    scaled = np.clip(values * (255.0 / white), 0, 255)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _by_profile(image: Image.Image) -> Image.Image | None:
    """The picture in sRGB when it carries a profile of another colour space; None when nothing is to be done."""
    profile: bytes = image.info.get("icc_profile") or b""
    if not profile or image.mode not in ("RGB", "CMYK") or b"sRGB" in profile or b"s\0R\0G\0B" in profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


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
