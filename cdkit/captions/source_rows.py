"""Rows of a source file read one by one: the values of one, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cdkit.credentials import without_credentials
from cdkit.json_text import json_text

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
