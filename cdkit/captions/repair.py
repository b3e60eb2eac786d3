"""Repair: a copy of a file that DuckDB refuses as a whole, read row by row; what is no row says why in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.captions.json_lines import every_key, json_rows, needed_keys
from cdkit.captions.lines import SourceRow, readable, row_of, separated_rows
from cdkit.captions.reading import SourceTable, with_keys
from cdkit.captions.relation import FAULT, FAULT_TEXT
from cdkit.core.errors import CdkitError

if TYPE_CHECKING:
    from cdkit.captions.config import ImportConfig

BATCH_ROWS = 1 << 16


class NeedsRepairError(CdkitError):
    """DuckDB refused a file that can perhaps be read row by row; caught inside the import stage."""


def reading_error(table: SourceTable, error: Exception) -> CdkitError:
    """What a DuckDB error while reading `table` means: NeedsRepairError, or for a copy an InputError."""
    if not table.repaired:
        return NeedsRepairError(table.name)
    return table.problem(
        f"cannot be read: {str(error).splitlines()[0]}", hint="The file may be damaged; get it again."
    )


def repaired_copy(table: SourceTable, path: Path, config: ImportConfig) -> SourceTable:
    """Write the columns that mean something to parquet at `path`, with why a row is none and what shows it.

    Raises InputError for a file that is damaged beyond single rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if table.kind == "jsonl":
        with readable(table.name), table.lines() as lines:
            more = needed_keys(every_key(lines), config) - table.keys.seen.keys()
        table = with_keys(table, tuple(sorted(more)), config)
    names = [FAULT, FAULT_TEXT, *(f"c{position}" for position in table.layout.positions)]
    schema = pa.schema([(name, pa.string()) for name in names])
    rows = _rows(table)
    with pq.ParquetWriter(path, schema, compression="lz4") as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            faults = [[row.fault for row in batch], [row.text for row in batch]]
            columns = [list(column) for column in zip(*(row.values for row in batch), strict=True)]
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in faults + columns], schema=schema))
    return replace(table, path=path, kind="parquet", types=("string",) * len(table.names), repaired=True)


def _rows(table: SourceTable) -> Iterator[SourceRow]:
    """Every row of the file, with the values of the columns that mean something."""
    if table.kind == "parquet":
        yield from _parquet_rows(table)
        return
    with readable(table.name), table.lines() as lines:
        if table.kind == "jsonl":
            yield from json_rows(lines, table.names, table.layout)
        else:
            yield from separated_rows(
                lines,
                len(table.names),
                table.layout,
                table.delimiter,
                quoted=table.quoted,
                header=table.header,
            )


def _parquet_rows(table: SourceTable) -> Iterator[SourceRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # The file's own Arrow schema would turn binary captions into escaped text.
    with pq.ParquetFile(table.path) as file:
        names = [table.names[position] for position in table.layout.positions]
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=names):
                columns = []
                for name in names:
                    values = batch.column(name)
                    if pa.types.is_dictionary(values.type):
                        values = values.dictionary_decode()
                    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
                        values = values.cast(pa.large_binary())
                    columns.append(values.to_pylist())
                yield from (row_of(row, table.layout.texts) for row in zip(*columns, strict=True))
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            hint = "The file may be cut off or damaged; get it again."
            raise table.problem(f"cannot be read as parquet: {' '.join(str(error).split())}", hint=hint) from error
