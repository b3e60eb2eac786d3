"""One picture: where its bytes lie (a file, a tar member, a Parquet cell), and the hashes that tell it from others."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.core.storage import atomic_path
from cdkit.pictures.folder import START

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# An uncompressed picture of the most pixels, 16 bits in three colours, takes 1.1 GB.
MOST_BYTES = 2 << 30


class Content(Protocol):
    """Bytes that can be read later, in another process too."""

    def read(self) -> bytes:
        """All bytes; raises InputError when they are gone."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read; raises InputError for what is none (a pipe would wait for ever) or not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{printable(path)} cannot be read: {error.strerror}.", hint="Was it moved?") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{printable(path)} is no regular file.", hint="Give a file on a disk.")
    return open(descriptor, "rb")


@dataclass(frozen=True)
class FileContent:
    """A whole file, or `size` bytes of it from `start` (a tar member)."""

    path: Path
    start: int = 0
    size: int | None = None

    def read(self) -> bytes:
        content = self.read_at_most(MOST_BYTES if self.size is None else self.size)
        if self.size is not None and len(content) != self.size:
            raise InputError(f"{printable(self.path)} is cut short.", hint="Download it again.")
        return content

    def read_at_most(self, size: int) -> bytes:
        """The first bytes; raises InputError for more than any picture has."""
        try:
            with open_regular(self.path) as handle:
                handle.seek(self.start)
                left = os.fstat(handle.fileno()).st_size - self.start
                if min(left, size) >= MOST_BYTES:
                    raise InputError(f"{printable(self.path)} is too large for a picture.", hint="Remove it.")
                # Python takes as much memory as it is asked to read, however short the file.
                return handle.read(max(0, min(left, size)))
        except OSError as error:
            raise InputError(f"{printable(self.path)} cannot be read: {error}", hint="Was it moved?") from error


@dataclass(frozen=True)
class BytesContent:
    """Bytes at hand."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class CellContent:
    """One cell of a Parquet column of bytes, or of structs that hold `bytes` (Hugging Face's Image)."""

    path: Path
    row_group: int
    row: int
    column: str

    def read(self) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.ParquetFile(self.path).read_row_group(self.row_group, columns=[self.column])
            value = table[self.column][self.row].as_py()
        except (OSError, pa.ArrowException, KeyError, IndexError) as error:
            raise InputError(
                f"{printable(self.path)} cannot be read: {error}", hint="Was it moved or changed?"
            ) from error
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise InputError(
                f"{printable(self.path)} holds no image in column {self.column!r}.", hint="Was it changed?"
            )
        return value


@dataclass(frozen=True)
class Picture:
    """One picture. key: unique in its folder; name: for messages; caption and url: None where nothing says them.

    said: what its row says of rights and ratings, by column.
    """

    key: str
    name: str
    content: Content
    caption: str | None = None
    url: str | None = None
    said: Mapping[str, str] = field(default_factory=dict, hash=False)

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


def open_file(path: Path, max_side: int | None = None) -> Image.Image:
    """The RGB picture in a file; raises InputError with its name when there is none."""
    from cdkit.pictures.decoding import open_bytes

    return open_bytes(FileContent(path).read(), printable(path), max_side)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG atomically."""
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def png_texts(path: Path) -> dict[str, str]:
    """The texts that a PNG file of ours carries beside its pixels; none where it is no such file."""
    from PIL import Image

    with suppress(InputError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        image = Image.open(io.BytesIO(FileContent(path).read()), formats=("PNG",))
        return {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    return {}


# Of 64 bits. On 1,704 real photos and drawings every pair up to 4 is a copy or two views of the same drawing.
NEAR = 4


def perceptual_hash(picture: Image.Image) -> int:
    """The 64-bit phash of a picture."""
    import imagehash

    return int(str(imagehash.phash(picture)), 16)


def mirrored_hash(picture: Image.Image) -> int:
    """The phash of the picture seen in a mirror."""
    from PIL import ImageOps

    return perceptual_hash(ImageOps.mirror(picture))


def hash_groups(hashes: Sequence[int], bits: int) -> list[int]:
    """The group of each 64-bit hash: those within `bits` of each other, directly or by others between them."""
    import numpy as np

    values: np.ndarray = np.array(hashes, dtype=np.uint64)
    groups = np.arange(len(values))
    for place in range(len(values)):
        near = np.flatnonzero(np.bitwise_count(values[:place] ^ values[place]) <= bits)
        for group in np.unique(groups[near]):
            groups[groups == group] = place
    return [int(group) for group in groups]


def names_alike(hashes: Sequence[tuple[str, int]], bits: int) -> list[list[str]]:
    """Names whose hashes are in one group, group by group, in their order; what is near nothing is in none."""
    groups: dict[int, list[str]] = {}
    for (name, _), group in zip(hashes, hash_groups([value for _, value in hashes], bits), strict=True):
        groups.setdefault(group, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


class NearHashes:
    """A growing set of 64-bit hashes that answers whether one is within `distance` bits of any."""

    def __init__(self, distance: int, hashes: Sequence[int] = ()) -> None:
        import numpy as np

        self._distance = distance
        self._hashes: np.ndarray = np.zeros(max(64, len(hashes)), dtype=np.uint64)
        self._count = len(hashes)
        self._hashes[: self._count] = np.array(hashes, dtype=np.uint64)

    def __contains__(self, value: int) -> bool:
        import numpy as np

        if not self._count:
            return False
        apart = np.bitwise_count(self._hashes[: self._count] ^ np.uint64(value))
        return int(apart.min()) <= self._distance

    def add(self, value: int) -> None:
        import numpy as np

        if self._count == len(self._hashes):
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[self._count] = value
        self._count += 1
