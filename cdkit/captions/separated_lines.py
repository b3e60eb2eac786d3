"""Rows of csv and tsv files line by line: a line that is no row is one bad row, and reading goes on behind it."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator, Sequence

from cdkit.captions.pools import Layout
from cdkit.captions.source_rows import BROKEN_QUOTES, TOO_LONG, WRONG_COLUMNS, SourceRow, broken, row_of
from cdkit.captions.text_lines import MAX_LINE


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
