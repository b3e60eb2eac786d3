"""A source file as DuckDB reads it: a FROM item, or first a copy of it where DuckDB refuses the file as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.captions.json_lines import every_key, json_rows, needed_keys
from cdkit.captions.lines import MAX_LINE, SourceRow, readable, row_of, separated_rows
from cdkit.captions.reading import SourceTable, with_keys
from cdkit.core.errors import CdkitError

if TYPE_CHECKING:
    from cdkit.captions.config import ImportConfig

FAULT, FAULT_TEXT = "fault", "fault_text"


def relation_sql(table: SourceTable) -> str:
    """A FROM item with the row's number in the file, `row`, what is wrong with it, and columns c0, c1, … by position.

    fault, fault_text: why a row of a repaired copy is none, and what shows it; null for rows, and in other files.
    """
    wanted = [f"c{position}" for position in table.layout.positions]
    location = quote(str(table.path))
    if table.repaired:
        columns = ", ".join(["file_row_number AS row", FAULT, FAULT_TEXT, *wanted])
        return f"(SELECT {columns} FROM read_parquet({location}, file_row_number=true))"
    none = [f"NULL::VARCHAR AS {FAULT}", f"NULL::VARCHAR AS {FAULT_TEXT}"]
    if table.kind == "parquet":
        options = "file_row_number=true, hive_partitioning=false, binary_as_string=true"
        # By position: DuckDB takes names that differ in case only for one, and may take the wrong one.
        aliases = ", ".join([*(f"c{position}" for position in range(len(table.names))), "file_row_number"])
        columns = ", ".join(["file_row_number AS row", *none, *wanted])
        return f"(SELECT {columns} FROM read_parquet({location}, {options}) AS t({aliases}))"
    if table.kind == "jsonl":
        reader = _json_reader(table, location)
        wanted = [f"{_identifier(table.names[position])} AS c{position}" for position in table.layout.positions]
    else:
        reader = _csv_reader(table, location)
    columns = ", ".join(["row_number() OVER () - 1 AS row", *none, *wanted])
    return f"(SELECT {columns} FROM {reader})"


def keys_sql(table: SourceTable) -> str:
    """A query for the distinct keys of a jsonl file's objects."""
    reader = f"read_json_objects({quote(str(table.path))}, {_json_options(table)})"
    return f"SELECT DISTINCT unnest(keys) FROM (SELECT DISTINCT json_keys(json) AS keys FROM {reader})"


def _csv_reader(table: SourceTable, location: str) -> str:
    columns = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(len(table.names)))
    mark = "'\"'" if table.quoted else "''"
    options = [
        "auto_detect=false",
        f"columns={{{columns}}}",
        f"header={str(table.header).lower()}",
        f"delim={quote(table.delimiter)}",
        f"quote={mark}",
        f"escape={mark}",
        f"compression='{table.compression}'",
        "strict_mode=true",
        "null_padding=false",
        "ignore_errors=false",
        f"max_line_size={MAX_LINE}",
    ]
    return f"read_csv({location}, {', '.join(options)})"


def _json_reader(table: SourceTable, location: str) -> str:
    columns = ", ".join(f"{quote(table.names[position])}: 'VARCHAR'" for position in table.layout.positions)
    return f"read_json({location}, records=true, columns={{{columns}}}, {_json_options(table)})"


def _json_options(table: SourceTable) -> str:
    return f"format='newline_delimited', compression='{table.compression}', maximum_object_size={MAX_LINE}"


def quote(text: str) -> str:
    """A SQL string."""
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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
