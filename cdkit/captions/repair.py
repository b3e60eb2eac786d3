"""Repair: a copy of a file that DuckDB refuses as a whole, in which only the values at fault are marked."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.captions.source_reading import SourceTable, open_bytes, parse_json_line
from cdkit.errors import CdkitError
from cdkit.json_text import json_text

if TYPE_CHECKING:
    import pyarrow as pa

# Noncharacters: valid UTF-8 that no text may contain, so the mark cannot be a caption's own.
MARK = "\ufdd0\ufdd1\ufdd0"
BATCH_ROWS = 1 << 16
_REASON = re.compile(
    r"Value with unterminated quote found|Expected Number of Columns: \d+ Found: \d+|Maximum line size[^.]*"
)


class NeedsRepairError(CdkitError):
    """DuckDB refused a file that can be read row by row; caught inside the import stage."""


def reading_error(table: SourceTable, error: Exception) -> CdkitError:
    """What a DuckDB error while reading `table` means: NeedsRepairError, or an InputError that names file and line."""
    text = str(error)
    lowered = text.lower()
    broken_text = any(word in lowered for word in ("unicode", "utf8", "utf-8", "string encoding", "state machine"))
    if not table.repaired and (broken_text or table.kind == "jsonl"):
        return NeedsRepairError(table.name)
    line = re.search(r"Error on Line: (\d+)", text)
    reason = _REASON.search(text)
    if line:
        what = reason.group() if reason else text.split("\n", maxsplit=1)[0]
        hint = "Repair that line: every quoted value has to be closed and every row needs the same number of values."
        return table.problem(f"line {line.group(1)}: {what}", hint=hint)
    return table.problem(f"cannot be read: {text.splitlines()[0]}", hint="The file may be damaged; get it again.")


def repaired_copy(table: SourceTable, path: Path) -> SourceTable:
    """Write the columns that mean something to parquet at `path`; undecodable values become MARK plus what is left.

    Raises InputError naming the line for csv or jsonl that is broken beyond that.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = sorted(set(table.layout.columns.values()))
    schema = pa.schema([(f"c{position}", pa.string()) for position in range(len(table.names))])
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        for columns in _batches(table, wanted):
            rows = len(columns[0])
            known = dict(zip(wanted, columns, strict=True))
            arrays = [_marked(known.get(position), rows) for position in range(len(table.names))]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    names = tuple(schema.names)
    return replace(table, path=path, kind="parquet", names=names, types=("string",) * len(names), repaired=True)


def _batches(table: SourceTable, wanted: Sequence[int]) -> Iterator[list[list[object]]]:
    """Batches of the wanted columns, each a list of values."""
    if table.kind == "parquet":
        yield from _parquet_batches(table, wanted)
        return
    with open_bytes(table) as handle:
        # Invalid bytes become lone surrogates, by which _readable finds them.
        text = io.TextIOWrapper(handle, encoding=table.encoding, errors="surrogateescape", newline="")
        rows = _json_rows(table, text, wanted) if table.kind == "jsonl" else _csv_rows(table, text, wanted)
        while batch := list(islice(rows, BATCH_ROWS)):
            yield [list(column) for column in zip(*batch, strict=True)]


def _parquet_batches(table: SourceTable, wanted: Sequence[int]) -> Iterator[list[list[object]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The file's own Arrow schema would turn binary captions into escaped text.
    with pq.ParquetFile(table.path) as file:
        names = [table.names[position] for position in wanted]
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            columns = []
            for name in names:
                values = batch.column(name)
                if pa.types.is_dictionary(values.type):
                    values = values.dictionary_decode()
                if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                    values = values.cast(pa.large_binary())
                columns.append(values.to_pylist())
            yield columns


def _csv_rows(table: SourceTable, text: io.TextIOWrapper, wanted: Sequence[int]) -> Iterator[list[object]]:
    if table.quoted:
        reader = csv.reader(text, delimiter=table.delimiter, strict=True)
    else:
        reader = csv.reader(text, delimiter=table.delimiter, quoting=csv.QUOTE_NONE)
    width, start = len(table.names), 1
    try:
        for number, row in enumerate(reader):
            if len(row) != width and row:
                raise table.problem(f"line {start}: {len(row)} values instead of {width}", hint="Repair that line.")
            start = reader.line_num + 1
            if number == 0 and table.header:
                continue
            if row or width == 1:
                yield [row[position] if row else None for position in wanted]
    except csv.Error as error:
        hint = "Repair that line: every quoted value has to be closed."
        raise table.problem(f"the row that starts in line {start} is broken: {error}", hint=hint) from error


def _json_rows(table: SourceTable, text: Iterable[str], wanted: Sequence[int]) -> Iterator[list[object]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            value = parse_json_line(table, line, number)
            yield [value.get(table.names[position]) for position in wanted]


def _marked(values: list[object] | None, rows: int) -> pa.Array:
    import pyarrow as pa

    if values is None:
        return pa.nulls(rows, pa.string())
    return pa.array([_readable(value) for value in values], pa.string())


def _readable(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        text = value.decode("utf-8", "surrogateescape")
    else:
        text = value if isinstance(value, str) else json_text(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return MARK + text.encode("utf-8", "replace").decode()
    return text
