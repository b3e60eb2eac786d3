"""Pictures to evaluate: their bytes identify them, they are turned upright, and what cannot be read is an error."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Picture:
    """One picture: a name for messages, the sha256 of its content, and how to open it."""

    name: str
    content: str
    load: Callable[[], Image.Image]

    def open(self) -> Image.Image:
        """The picture as RGB, upright; raises InputError when it cannot be decoded or holds NaN."""
        from PIL import ImageOps

        try:
            image = self.load()
            if image.mode in ("F", "I;16", "I"):
                return _from_numbers(image, self.name)
            return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"{self.name} is no picture that can be read: {error}", hint="Replace or remove it."
            ) from error


def _from_numbers(image: Image.Image, name: str) -> Image.Image:
    """A picture of floats in 0 to 1 or of 16-bit integers; PIL's own conversion would clip it without a word."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinite pixels.", hint="Draw it again.")
    top = 1.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 if image.mode == "F" else 65535.0
    scaled = (np.clip(values / top, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB")


def picture_file(path: Path) -> Picture:
    """The picture in a file; raises InputError when it is not there."""
    from PIL import Image

    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Was it moved?") from error
    return Picture(str(path), hashlib.sha256(content).hexdigest(), lambda: Image.open(path))


def picture_bytes(name: str, content: bytes) -> Picture:
    """The picture that some bytes are."""
    from PIL import Image

    return Picture(name, hashlib.sha256(content).hexdigest(), lambda: Image.open(io.BytesIO(content)))


def picture_in_memory(name: str, image: Image.Image) -> Picture:
    """A picture that is decoded already."""
    mark = hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes())
    return Picture(name, mark.hexdigest(), lambda: image)
