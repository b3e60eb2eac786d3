"""Source files: fetched when remote, their columns found, and opened in DuckDB with row numbers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from cdkit.captions.pools import FIELDS, KNOWN_NAMES, Layout, find_layout, headerless_preset, preset_named
from cdkit.errors import CdkitError, InputError, NetworkError
from cdkit.storage import SourceFile, write_problem

if TYPE_CHECKING:
    from cdkit.captions.import_captions import ImportConfig

Kind = Literal["parquet", "csv", "tsv", "jsonl"]
SAMPLE_ROWS = 1000
_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
_KINDS: dict[str, Kind] = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}


@dataclass(frozen=True)
class SourceTable:
    """One file as a table: where it lies, how it is written, its columns and what they mean.

    types: the Arrow type of each column as text, empty for text formats; empty: no rows and no columns; repaired:
    a copy of the needed columns in which undecodable values are marked.
    """

    name: str
    path: Path
    kind: Kind
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    layout: Layout = field(default_factory=lambda: Layout("none", {}))
    compression: Literal["none", "gzip", "zstd"] = "none"
    encoding: str = "utf-8-sig"
    delimiter: str = ","
    quoted: bool = True
    header: bool = True
    empty: bool = False
    repaired: bool = False

    def problem(self, what: str, *, hint: str) -> InputError:
        """An InputError that names this file."""
        return InputError(f"{self.name}: {what}", hint=hint)


@contextmanager
def local_copy(source: SourceFile, folder: Path) -> Iterator[Path]:
    """A path in `folder` under which the file can be read: a link to a local file, a download of a remote one.

    A link, because DuckDB would expand glob characters in the real name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "source"
    path.unlink(missing_ok=True)
    try:
        if source.is_local:
            path.symlink_to(Path(source.url).absolute())
        else:
            _download(source, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _download(source: SourceFile, path: Path) -> None:
    import fsspec

    try:
        with fsspec.open(source.url, "rb") as remote, open(path, "wb") as local:
            shutil.copyfileobj(remote, local, 1 << 22)
    except FileNotFoundError as error:
        raise InputError(f"{source.url} is gone: {error}", hint="Check the address.") from error
    except Exception as error:
        problem = write_problem(error, path)
        hint = "Check the connection and run the same command again: finished files are kept."
        raise problem or NetworkError(f"{source.url} cannot be fetched: {error}", hint=hint) from error


def inspect(source: SourceFile, path: Path, config: ImportConfig) -> SourceTable:
    """Find out how a file is written and what its columns mean.

    Raises InputError for a damaged file or one without a caption column, ConfigError for a column that is not there.
    """
    table = SourceTable(source.name, path, "parquet")
    try:
        table = _format_of(source, path)
        described = _parquet_columns(table) if table.kind == "parquet" else _text_columns(table, config)
        if described.empty:
            return described
        if described.layout.columns:
            return described
        names = list(described.names)
        layout = find_layout(
            names, pool=config.pool, caption_column=config.caption_column, url_column=config.url_column
        )
    except (OSError, EOFError, UnicodeError) as error:
        raise table.problem(f"cannot be read: {error}", hint="The file may be truncated; get it again.") from error
    except CdkitError as error:
        raise type(error)(
            f"{source.name}: {error.message.removeprefix(f'{source.name}: ')}", hint=error.hint
        ) from error
    _check_types(described, layout)
    return replace(described, layout=layout)


def _format_of(source: SourceFile, path: Path) -> SourceTable:
    with open(path, "rb") as handle:
        head = handle.read(4)
    name = source.name.split("?")[0].lower()
    compression: Literal["none", "gzip", "zstd"] = "none"
    if head.startswith((_GZIP, _ZSTD)):
        compression = "gzip" if head.startswith(_GZIP) else "zstd"
    kind = _KINDS.get(name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1])
    kind = "parquet" if head == _PARQUET else kind
    if kind is None:
        raise InputError(
            f"{source.name}: not a kind of file that can be imported",
            hint="Give parquet, csv, tsv or jsonl; text may be compressed as .gz or .zst.",
        )
    table = SourceTable(source.name, path, kind, compression=compression, delimiter="\t" if kind == "tsv" else ",")
    if compression == "none" and head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return replace(table, encoding="utf-16")
    return table


def _parquet_columns(table: SourceTable) -> SourceTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(table.path)
    except (pa.ArrowException, OSError) as error:
        hint = "The file may be truncated or not parquet at all; get it again."
        raise table.problem(f"cannot be read as parquet: {error}", hint=hint) from error
    return replace(table, names=tuple(schema.names), types=tuple(str(kind) for kind in schema.types))


def _text_columns(table: SourceTable, config: ImportConfig) -> SourceTable:
    with open_bytes(table) as handle:
        text = io.TextIOWrapper(handle, encoding=table.encoding, errors="surrogateescape", newline="")
        if table.kind == "jsonl":
            return _json_columns(table, text, config)
        sample = list(islice(text, 50))
    if not any(line.strip() for line in sample):
        return replace(table, empty=True)
    return _separated_columns(table, sample, config)


def _separated_columns(table: SourceTable, sample: list[str], config: ImportConfig) -> SourceTable:
    """Header or not, separator and columns of a csv or tsv file, from its first lines."""
    plain = [line.rstrip("\r\n").split(table.delimiter) for line in sample if line.strip()]
    preset = preset_named(config.pool) if config.pool else headerless_preset(plain)
    if preset is not None and preset.header:
        if config.caption_column or config.url_column:
            raise InputError("has no header line, so no column can be chosen by name", hint="Choose --pool alone.")
        if len(plain[0]) != 2:
            raise InputError(
                f"not the layout of pool {preset.name!r}: {len(plain[0])} values in the first line instead of 2",
                hint="Leave --pool out to have the layout detected.",
            )
        columns = {meaning: position for position, meaning in enumerate(preset.header)}
        # These pools know no quoting: a quotation mark is a part of the caption.
        described = replace(table, names=preset.header, header=False, quoted=table.kind == "csv")
        return replace(described, layout=Layout(preset.name, columns))
    if table.kind == "csv" and "," not in sample[0]:
        table = replace(table, delimiter=next((mark for mark in ";\t|" if mark in sample[0]), ","))
    names = next(csv.reader(sample, delimiter=table.delimiter), [])
    return replace(table, names=tuple(names))


def _json_columns(table: SourceTable, lines: io.TextIOWrapper, config: ImportConfig) -> SourceTable:
    """The keys of the first lines, and every known name besides: a rating may first appear further down."""
    names: dict[str, None] = {}
    nested: set[str] = set()
    for number, line in enumerate(islice(lines, SAMPLE_ROWS), start=1):
        if line.strip():
            value = parse_json_line(table, line, number)
            names.update(dict.fromkeys(value))
            nested.update(key for key, item in value.items() if isinstance(item, (list, dict)))
    if not names:
        return replace(table, empty=True)
    layout = find_layout(
        list(names), pool=config.pool, caption_column=config.caption_column, url_column=config.url_column
    )
    found, columns = list(names), dict(layout.columns)
    types = ["list" if name in nested else "string" for name in found]
    _check_types(replace(table, names=tuple(found), types=tuple(types)), layout)
    for meaning in FIELDS[1:]:
        for known in KNOWN_NAMES[meaning]:
            if meaning not in columns and known not in {name.lower() for name in found}:
                columns[meaning] = len(found)
                found.append(known)
    return replace(table, names=tuple(found), layout=Layout(layout.pool, columns))


def parse_json_line(table: SourceTable, line: str, number: int) -> dict[str, object]:
    """One line of a jsonl file; raises InputError naming the line when it is not a JSON object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise table.problem(f"line {number} is not JSON: {error}", hint="Repair or remove that line.") from error
    if not isinstance(value, dict):
        raise table.problem(f"line {number} is not a JSON object", hint="Each line has to be one {...} object.")
    return value


@contextmanager
def open_bytes(table: SourceTable) -> Iterator[BinaryIO]:
    """The decompressed bytes of a text file."""
    if table.compression == "zstd":
        import pyarrow as pa

        with pa.input_stream(str(table.path), compression="zstd") as plain:
            yield cast(BinaryIO, io.BufferedReader(plain))
    elif table.compression == "gzip":
        with gzip.open(table.path, "rb") as handle:
            yield cast(BinaryIO, handle)
    else:
        with open(table.path, "rb") as handle:
            yield handle


def _check_types(table: SourceTable, layout: Layout) -> None:
    for meaning in ("caption", "url"):
        if not table.types or meaning not in layout.columns:
            continue
        position = layout.columns[meaning]
        kind = table.types[position]
        if re.match(r"(large_|fixed_size_)?list|struct|map", kind):
            raise table.problem(
                f"column {table.names[position]!r} holds {kind.split('<')[0]} values, not text",
                hint=f"Choose another column with --{meaning}-column, or write one row per {meaning}.",
            )


def relation_sql(table: SourceTable) -> str:
    """A FROM item with columns c0, c1, … (those that mean something) and `row`, the row's number in the file."""
    wanted = sorted(set(table.layout.columns.values()))
    location = _quote(str(table.path))
    if table.kind == "parquet":
        chosen = ", ".join(f"{_identifier(table.names[position])} AS c{position}" for position in wanted)
        options = "file_row_number=true, hive_partitioning=false, binary_as_string=true"
        return f"(SELECT file_row_number AS row, {chosen} FROM read_parquet({location}, {options}))"
    if table.kind == "jsonl":
        reader = _json_reader(table, location, wanted)
        chosen = ", ".join(f"{_identifier(table.names[position])} AS c{position}" for position in wanted)
    else:
        reader = _csv_reader(table, location)
        chosen = ", ".join(f"c{position}" for position in wanted)
    return f"(SELECT row_number() OVER () - 1 AS row, {chosen} FROM {reader})"


def _csv_reader(table: SourceTable, location: str) -> str:
    columns = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(len(table.names)))
    quote = "'\"'" if table.quoted else "''"
    options = [
        "auto_detect=false",
        f"columns={{{columns}}}",
        f"header={str(table.header).lower()}",
        f"delim={_quote(table.delimiter)}",
        f"quote={quote}",
        f"escape={quote}",
        f"compression='{table.compression}'",
        "strict_mode=true",
        "null_padding=false",
        "ignore_errors=false",
        "max_line_size=16777216",
    ]
    return f"read_csv({location}, {', '.join(options)})"


def _json_reader(table: SourceTable, location: str, wanted: list[int]) -> str:
    columns = ", ".join(f"{_quote(table.names[position])}: 'VARCHAR'" for position in wanted)
    return (
        f"read_json({location}, format='newline_delimited', records=true, columns={{{columns}}}, "
        f"compression='{table.compression}')"
    )


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
