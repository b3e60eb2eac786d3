"""Where the bytes of an image lie: in a file, in a tar member, or in a Parquet cell; read when they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cdkit.errors import InputError


class Content(Protocol):
    """Bytes that can be read later, in another process too."""

    def read(self) -> bytes:
        """All bytes; raises InputError when they are gone."""


@dataclass(frozen=True)
class FileContent:
    """A whole file, or `size` bytes of it from `start` (a tar member)."""

    path: Path
    start: int = 0
    size: int | None = None

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as handle:
                handle.seek(self.start)
                content = handle.read() if self.size is None else handle.read(self.size)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error}", hint="Was it moved?") from error
        if self.size is not None and len(content) != self.size:
            raise InputError(f"{self.path} is cut short.", hint="Download it again.")
        return content


@dataclass(frozen=True)
class CellContent:
    """One cell of a binary Parquet column."""

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
        except (OSError, pa.ArrowInvalid, KeyError, IndexError) as error:
            raise InputError(f"{self.path} cannot be read: {error}", hint="Was it moved or changed?") from error
        if not isinstance(value, bytes):
            raise InputError(f"{self.path} holds no image in column {self.column!r}.", hint="Was it changed?")
        return value


@dataclass(frozen=True)
class FetchedImage:
    """An image that was got, not decoded yet. sha256: of the bytes as they came, None where not read yet."""

    url: str | None
    content: Content
    sha256: str | None = None
    size: int | None = None
    status: int | None = None


@dataclass(frozen=True)
class FailedFetch:
    """A URL that was given up. kind: one of failures.FAILURE_KINDS; status: the HTTP status where there was one."""

    url: str | None
    kind: str
    status: int | None = None
    detail: str = ""
