"""Text files as lines, and csv and tsv rows among them: a line that is no row is one bad row."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, cast

from cdkit.captions.pools import Layout
from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text, without_credentials

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


# Why a line is no row.
BROKEN_QUOTES = "broken_quotes"
WRONG_COLUMNS = "wrong_columns"
NOT_JSON = "not_json"
NOT_OBJECT = "not_object"
AMBIGUOUS = "ambiguous"
NOT_TEXT = "not_text"
TOO_LONG = "too_long"
UNDECODABLE = "undecodable"
# Of a line that may have millions of characters.
MOST_SHOWN = 1000


@dataclass(frozen=True, slots=True)
class SourceRow:
    """The values of the columns that mean something, None for none; fault: why it is no row, text: what shows it."""

    values: Sequence[str | None]
    fault: str | None = None
    text: str = ""


def broken(fault: str, text: str, width: int) -> SourceRow:
    """A line that is no row of `width` values; what is shown of it has no passwords of URLs."""
    return SourceRow((None,) * width, fault, without_credentials(_shown(text[:MOST_SHOWN])))


def row_of(values: Sequence[object], texts: Collection[int]) -> SourceRow:
    """A row; an undecodable one when a value at a place of `texts` is no text: invalid UTF-8, or with a NUL in it."""
    row = [as_text(value) for value in values]
    for place, text in enumerate(row):
        if text is not None and not _is_text(text):
            if place in texts:
                return broken(UNDECODABLE, text, len(row))
            row[place] = _shown(text)
    return SourceRow(row)


def as_text(value: object) -> str | None:
    """A value as text, as DuckDB would write it; bytes that are no UTF-8 are marked by lone surrogates."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool | list | dict):
        return json_text(value, default=str)
    return str(value)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _shown(text: str) -> str:
    readable = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return readable.replace("\0", "").rstrip("\r\n")


class _Lines(Iterator[str]):
    """Lines that can be given back; `taken` are those of the record under way."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._ahead: deque[str] = deque()
        self.taken: list[str] = []
        self._characters = 0

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._lines)
        self.taken.append(line)
        self._characters += len(line)
        if self._characters > MAX_LINE:
            raise csv.Error("too long")
        return line

    def begin(self) -> None:
        """A record begins with the next line."""
        self.taken, self._characters = [], 0

    def give_back(self) -> None:
        """Give back all lines of the record but the first."""
        self._ahead.extendleft(reversed(self.taken[1:]))


def separated_reader(lines: Iterator[str], delimiter: str, *, quoted: bool = True) -> Iterator[list[str]]:
    """csv's own reader by the rules that DuckDB reads with: quotes are doubled, closed, and nothing stands behind."""
    # The module's own limit of 131,072 characters is for the whole process, and none that rows keep to.
    csv.field_size_limit(MAX_LINE)
    if quoted:
        return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def separated_rows(
    text: Iterator[str], width: int, layout: Layout, delimiter: str, *, quoted: bool, header: bool
) -> Iterator[SourceRow]:
    """Every row under the header, with the values that mean something; `width`: how many values a row has.

    A record that is broken costs the line it begins in: its other lines are read again as lines of their own.
    """
    lines, wanted, texts = _Lines(text), layout.positions, layout.texts
    reader = separated_reader(lines, delimiter, quoted=quoted)
    while True:
        lines.begin()
        try:
            row = next(reader)
            fault = _fault(row, width)
        except StopIteration:
            return
        except csv.Error:
            row, fault = [], BROKEN_QUOTES
        first = lines.taken[0]
        if fault is not None:
            lines.give_back()
            reader = separated_reader(lines, delimiter, quoted=quoted)
        if header:
            header = False
        elif fault is not None:
            yield broken(TOO_LONG if len(first) > MAX_LINE else fault, first, len(wanted))
        elif row or width == 1:
            yield row_of([row[position] if row else None for position in wanted], texts)


def _fault(row: Sequence[str], width: int) -> str | None:
    """Empty values behind the last column are separators too many, which say nothing."""
    if not row or (len(row) >= width and not any(row[width:])):
        return None
    return WRONG_COLUMNS
