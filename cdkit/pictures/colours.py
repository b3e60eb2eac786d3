"""Any of Pillow's modes as RGB in sRGB: 16 bits scaled to 8, colours by their profile, transparency over white."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

# ICC's name of the colours that a profile must speak of to say something about a picture of this mode.
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
# A profile that moves no colour by more than this, of 255, is sRGB under whatever name: pixels stay as they are.
_SAME = 2
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def to_rgb(image: Image.Image, profile: bytes | None = None) -> Image.Image:
    """A decoded picture as RGB. profile: in place of the one that it carries.

    A profile that is broken, or of another kind of colours than the picture has, says nothing. Raises ValueError for
    pixels that are no numbers.
    """
    opaque, alpha = _parts(image)
    profile = profile or image.info.get("icc_profile")
    colours = _in_srgb(opaque, profile) if isinstance(profile, bytes) or opaque.mode == "LAB" else None
    rgb = colours or opaque.convert("RGB")
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    white = Image.new("RGBA", rgb.size, "white")
    white.alpha_composite(rgb)
    return white.convert("RGB")


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours (mode L, RGB, CMYK or LAB), and the transparency (mode L), None where everything is opaque."""
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image)
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


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 or 32 bits or floats as 8 bits; where the format does not say its white, the values do."""
    tags: Any = getattr(image, "tag_v2", {})
    stored = np.asarray(image)
    values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite pixels")
    most = float(values.max(initial=0.0))
    if "16" in image.mode:
        bits = tags.get(_BITS_PER_SAMPLE) or (16,)
        white = float(2 ** min(int(bits[0]), 16) - 1)
    else:
        white = next((limit for limit in (1.0, 255.0, 65535.0) if most <= limit), most)
        white = 255.0 if white == 1.0 and image.mode != "F" else white
    scaled = np.rint(np.clip(values * (255.0 / white), 0, 255)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    clear = image.info.get("transparency")
    alpha = Image.fromarray(np.where(stored == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
    return Image.fromarray(scaled), alpha


def transparent_colour(image: ImageFile.ImageFile) -> Any:
    """The transparent colour of a PNG's header in 8 bits, as the pixels will be; it is stored in the file's own depth.

    Asked for before the pixels are loaded: afterwards the depth is forgotten.
    """
    colour = image.info.get("transparency")
    depth = str(image.tile[0].args) if image.tile else ""
    if image.mode == "RGB" and isinstance(colour, tuple):
        return tuple((level >> 8 if "16" in depth else level) & 255 for level in colour)
    if image.mode == "L" and isinstance(colour, int):
        return (colour * {"L;2": 85, "L;4": 17}.get(depth, 1) >> (8 if "16" in depth else 0)) & 255
    return colour


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
