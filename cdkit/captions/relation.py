"""A source file as DuckDB reads it: a FROM item with the columns that mean something and each row's number."""

from __future__ import annotations

from cdkit.captions.lines import MAX_LINE
from cdkit.captions.reading import SourceTable

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
