"""Pictures inside the page: shrunk, encoded as data URIs, and counted so that the file stays small."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

LIMIT_BYTES = 6_500_000  # base64 adds a third: the page stays below 10 MB
SMALL = 128


@dataclass(frozen=True)
class Shown:
    """A picture on the page; pixels: so small that its pixels should stay sharp when enlarged."""

    uri: str
    width: int
    height: int
    pixels: bool


@dataclass
class PictureBox:
    """Encodes pictures until the page would be too large; `left_out` counts those that found no room."""

    used: int = 0
    left_out: int = 0
    unreadable: int = 0

    def file(self, path: Path, side: int) -> Shown | None:
        """The picture in a file, at most `side` pixels wide or high."""
        from cdkit.pictures.picture import open_file

        return self._opened(lambda: open_file(path), side)

    def content(self, content: bytes, side: int) -> Shown | None:
        """The picture that some bytes are."""
        from cdkit.pictures.decoding import open_bytes

        return self._opened(lambda: open_bytes(content, "a picture of a set"), side)

    def _opened(self, opening: Callable[[], Image.Image], side: int) -> Shown | None:
        try:
            return self.image(opening(), side)
        except InputError:
            self.unreadable += 1
            return None

    def image(self, image: Image.Image, side: int) -> Shown | None:
        """An RGB picture; None when there is no room left."""
        from PIL import Image

        upright = image.copy()
        pixels = max(upright.size) <= SMALL
        if max(upright.size) > side:
            upright.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        if pixels:
            upright.save(buffer, format="PNG", optimize=True)
        else:
            upright.save(buffer, format="JPEG", quality=82, optimize=True)
        content = buffer.getvalue()
        if self.used + len(content) > LIMIT_BYTES:
            self.left_out += 1
            return None
        self.used += len(content)
        kind = "png" if pixels else "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
        return Shown(uri, upright.width, upright.height, pixels)
