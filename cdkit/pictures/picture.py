"""One picture that is not read yet: where its bytes lie, what it is called, and what its caption says."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from cdkit.pictures.content import Content, FileContent
from cdkit.pictures.formats import START

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One picture. key: unique in its folder; name: for messages; caption and url: None where nothing says them."""

    key: str
    name: str
    content: Content
    caption: str | None = None
    url: str | None = None

    def open(self, max_side: int | None = None) -> Image.Image:
        """The picture as RGB, upright; raises InputError with its name when it cannot be decoded."""
        from cdkit.pictures.decoding import open_bytes

        return open_bytes(self.content.read(), self.name, max_side)

    def start(self) -> bytes:
        """The first bytes, which tell the format; raises InputError when they cannot be read."""
        content = self.content
        return content.read_at_most(START) if isinstance(content, FileContent) else content.read()[:START]

    @cached_property
    def sha256(self) -> str:
        """sha256 of the content, in hex; raises InputError when it cannot be read."""
        return hashlib.sha256(self.content.read()).hexdigest()
