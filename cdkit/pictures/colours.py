"""Any of Pillow's modes as RGB in sRGB: 16 bits scaled to 8, colours by their profile, transparency over white."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

# ICC's name of the colours that a profile must speak of to say something about a picture of this mode.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
# A profile that moves no colour by more than this, of 255, is sRGB under whatever name: pixels stay as they are.
_SAME = 2
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


@dataclass(frozen=True)
class Stored:
    """What a file says of its numbers beyond Pillow's mode, and what is forgotten once the pixels are loaded.

    bits: of one level of grey, where they are more than 8; clear: the transparent colour, in the levels of the loaded
    pixels; profile: in place of the one that the picture carries.
    """

    bits: int = 16
    white_is_zero: bool = False
    clear: Any = None
    profile: bytes | None = None


def stored_facts(image: ImageFile.ImageFile, profile: bytes | None = None) -> Stored:
    """What a picture's header says, before its pixels are loaded."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE) or (16,)
    white_is_zero = image.mode[0] in "IF" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return Stored(min(int(bits[0]), 16), white_is_zero, _clear_colour(image), profile)


def _clear_colour(image: ImageFile.ImageFile) -> Any:
    """The transparent colour of a PNG's header: it is in the file's own depth, the loaded pixels in another."""
    colour = image.info.get("transparency")
    depth = str(image.tile[0].args) if image.tile else ""
    shift = 8 if "16" in depth and image.mode in ("L", "RGB") else 0
    if isinstance(colour, tuple):
        return tuple(level >> shift & 255 for level in colour)
    if image.mode == "L" and isinstance(colour, int):
        return colour * {"L;2": 85, "L;4": 17}.get(depth, 1) >> shift & 255
    return colour


def to_rgb(image: Image.Image, stored: Stored | None = None) -> Image.Image:
    """A decoded picture as RGB.

    A profile that is broken, or of another kind of colours than the picture has, says nothing. Raises ValueError for
    pixels that are no numbers.
    """
    stored = stored or Stored()
    opaque, alpha = _parts(image, stored)
    profile = stored.profile or image.info.get("icc_profile")
    colours = _in_srgb(opaque, profile) if isinstance(profile, bytes) or opaque.mode == "LAB" else None
    rgb = colours or opaque.convert("RGB")
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    white = Image.new("RGBA", rgb.size, "white")
    white.alpha_composite(rgb)
    return white.convert("RGB")


def _parts(image: Image.Image, stored: Stored) -> tuple[Image.Image, Image.Image | None]:
    """The colours (mode L, RGB, CMYK or LAB), and the transparency (mode L), None where everything is opaque."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image, stored)
    if stored.clear is not None:
        image.info["transparency"] = stored.clear
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if image.mode in _SPACES:
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _eight_bits(image: Image.Image, stored: Stored) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 or 32 bits or floats as 8 bits; where the format does not say its white, the values do."""
    levels = np.asarray(image)
    values = levels.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    most = float(values.max(initial=0.0))
    if "16" in image.mode:
        white = float(2**stored.bits - 1)
    else:
        white = next((limit for limit in (1.0, 255.0, 65535.0) if most <= limit), most)
        white = 255.0 if white == 1.0 and image.mode != "F" else white
    scaled = np.rint(np.clip(values * (255.0 / white), 0, 255)).astype(np.uint8)
    if stored.white_is_zero:
        scaled = 255 - scaled
    if not isinstance(stored.clear, int):
        return Image.fromarray(scaled), None
    return Image.fromarray(scaled), Image.fromarray(np.where(levels == stored.clear, 0, 255).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """The picture in sRGB; None where its profile says nothing, or that it is there already."""
    transform = _transform(profile, image.mode)
    try:
        return None if transform is None else ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        return None


@lru_cache(maxsize=4)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile (LAB has a space of its own) to sRGB; None where it does not fit, is broken, or is sRGB."""
    try:
        fits = profile is not None and _space(profile) == _SPACES[mode]
        if not fits and mode != "LAB":
            return None
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")) if fits else ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode in ("L", "RGB") and _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _space(profile: bytes) -> str:
    """The colours a profile speaks of; empty for one that joins two devices, or names single colours."""
    read = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    return "" if read.device_class.strip() in ("link", "abst", "nmcl") else str(read.xcolor_space).strip()


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    if mode == "RGB":
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    else:
        grid = np.arange(256, dtype=np.uint8)[None]
    before = Image.fromarray(grid)
    after = np.asarray(ImageCms.applyTransform(before, transform), dtype=np.int16)
    return int(np.abs(after - np.asarray(before.convert("RGB"), dtype=np.int16)).max()) <= _SAME
