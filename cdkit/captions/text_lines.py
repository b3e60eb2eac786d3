"""Text files as lines: decompressed, decoded and of bounded length, whatever is in them."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from cdkit.errors import InputError

Compression = Literal["none", "gzip", "zstd"]
# As for DuckDB, in bytes there; a longer line cannot be a row.
MAX_LINE = 1 << 24
_BLOCK = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UNDECODABLE = "cdkit-undecodable"


def _lone_surrogate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


# Bytes that are no text become a lone surrogate, by which the value they stand in is known.
codecs.register_error(_UNDECODABLE, _lone_surrogate)


def compression_of(head: bytes) -> Compression:
    """How a file is compressed, by its first bytes and not by its name."""
    return "gzip" if head.startswith(_GZIP) else "zstd" if head.startswith(_ZSTD) else "none"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what reading, decompressing and decoding a file raise into an InputError that names it."""
    try:
        yield
    except (EOFError, zlib.error, OSError, UnicodeError) as error:
        hint = "The file may be cut off or damaged; get it again."
        raise InputError(f"{name}: cannot be read: {error}", hint=hint) from error


@contextmanager
def open_bytes(path: Path, compression: Compression) -> Iterator[BinaryIO]:
    """The decompressed bytes of a file."""
    if compression == "zstd":
        import pyarrow as pa

        # Opened here: Arrow takes no path that is not UTF-8.
        with open(path, "rb") as packed, pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd") as plain:
            yield cast(BinaryIO, io.BufferedReader(plain))
    elif compression == "gzip":
        with gzip.open(path, "rb") as handle:
            yield cast(BinaryIO, handle)
    else:
        with open(path, "rb") as handle:
            yield handle


@contextmanager
def open_lines(path: Path, compression: Compression, encoding: str, newline: str) -> Iterator[Iterator[str]]:
    """The lines of a text file with their ends; of one longer than MAX_LINE only a beginning that is longer too.

    newline: what ends a line; another line end inside of it is a part of it.
    """
    with open_bytes(path, compression) as handle:
        text = io.TextIOWrapper(handle, encoding=encoding, errors=_UNDECODABLE, newline=newline)
        yield _bounded(text, newline)


def _bounded(text: io.TextIOWrapper, newline: str) -> Iterator[str]:
    while line := text.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(newline):
            rest = text.readline(MAX_LINE + 1)
        yield line


def check_whole(name: str, path: Path, compression: Compression) -> None:
    """Raise InputError for a zstd file that is cut off: DuckDB would take what there is for all of it."""
    if compression == "zstd":
        with readable(name), open_bytes(path, compression) as handle:
            while handle.read(_BLOCK):
                pass


def encoding_of(head: bytes) -> str:
    """utf-16 when the text begins with its mark, else UTF-8 with or without one."""
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def newline_of(head: bytes) -> str:
    """What ends a line: a line feed, and a carriage return alone only where the text has no other."""
    return "\r" if b"\r" in head and b"\n" not in head else "\n"
