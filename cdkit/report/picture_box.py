"""Pictures and charts of a report: encoded once, for the page itself and as files beside its Markdown."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

PICTURES = "pictures"
SMALL = 128


@dataclass(frozen=True)
class Shown:
    """A picture on the page; pixels: so small that its pixels should stay sharp when enlarged. link: of its file."""

    content: bytes
    kind: str
    width: int
    height: int
    pixels: bool
    link: str

    @property
    def uri(self) -> str:
        """The picture as an address that holds all of it."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Chart:
    """A chart with its title, as SVG text for the page; link: of its file."""

    title: str
    svg: str
    link: str

    @property
    def content(self) -> bytes:
        """As a file of its own, on white: what shows it may be dark."""
        head, rest = self.svg.split(">", 1)
        return f'{head}><rect width="100%" height="100%" fill="#fff"/>{rest}\n'.encode()


@dataclass
class PictureBox:
    """Encodes pictures up to `limit` bytes in all; `left_out` counts those that found no room."""

    limit: int
    used: int = 0
    left_out: int = 0
    unreadable: int = 0
    shown: list[Shown | Chart] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def file(self, path: Path, side: int, name: str = "") -> Shown | None:
        """The picture in a file, at most `side` pixels wide or high. name: of its file beside the Markdown."""
        from cdkit.pictures.picture import open_file

        return self._opened(lambda: open_file(path), side, name or path.stem)

    def content(self, content: bytes, side: int, name: str) -> Shown | None:
        """The picture that some bytes are."""
        from cdkit.pictures.decoding import open_bytes

        return self._opened(lambda: open_bytes(content, "a picture of a set"), side, name)

    def _opened(self, opening: Callable[[], Image.Image], side: int, name: str) -> Shown | None:
        try:
            return self.image(opening(), side, name)
        except InputError:
            self.unreadable += 1
            return None

    def image(self, image: Image.Image, side: int, name: str = "picture") -> Shown | None:
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
        if self.used + len(content) > self.limit:
            self.left_out += 1
            return None
        self.used += len(content)
        kind = "png" if pixels else "jpeg"
        shown = Shown(content, kind, upright.width, upright.height, pixels, self._link(name, kind))
        self.shown.append(shown)
        return shown

    def chart(self, title: str, svg: str, name: str) -> Chart | None:
        """A chart; None for one of nothing."""
        if not svg:
            return None
        chart = Chart(title, svg, self._link(name, "svg"))
        self.shown.append(chart)
        return chart

    def _link(self, name: str, kind: str) -> str:
        """A file name that is not taken, even where letters' case does not count."""
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "picture"
        link, number = f"{stem}.{kind}", 2
        while link in self._names:
            link, number = f"{stem}-{number}.{kind}", number + 1
        self._names.add(link)
        return f"{PICTURES}/{link}"
