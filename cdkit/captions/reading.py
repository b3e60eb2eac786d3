"""Source files: fetched when remote, and found out about: how they are written, and what their columns mean."""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cdkit.captions.json_lines import KeySample, keyed_layout, sampled_keys
from cdkit.captions.lines import (
    Compression,
    compression_of,
    encoding_of,
    newline_of,
    open_bytes,
    open_lines,
    readable,
    separated_reader,
)
from cdkit.captions.pools import Layout, find_layout, headerless_preset, preset_named
from cdkit.core.errors import CdkitError, InputError, NetworkError, system_problem
from cdkit.core.file_kinds import wrong_download
from cdkit.core.storage import SourceFile

if TYPE_CHECKING:
    from cdkit.captions.config import ImportConfig

Kind = Literal["parquet", "csv", "tsv", "jsonl"]
SAMPLE_LINES = 50
HEAD_BYTES = 1 << 16
_PARQUET = b"PAR1"
_KINDS: dict[str, Kind] = {"parquet": "parquet", "csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "ndjson": "jsonl"}
_TEXT_TYPE = re.compile(
    r"null|(large_)?(string|binary)(_view)?|fixed_size_binary\[\d+\]|"
    r"dictionary<values=(large_)?(string|binary)(_view)?,.*"
)


@dataclass(frozen=True)
class SourceTable:
    """One file as a table: where it lies, how it is written, its columns and what they mean.

    types: the Arrow type of each column as text, empty for text formats; keys: what is known of a jsonl file's first
    lines; empty: no rows and no columns; by_row: DuckDB cannot read it as it is; repaired: a copy of the needed
    columns in which rows that are none say why; collection: made of a folder of pictures, by addresses of files.
    """

    name: str
    path: Path
    kind: Kind
    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    layout: Layout = field(default_factory=lambda: Layout("none", {}))
    compression: Compression = "none"
    encoding: str = "utf-8-sig"
    newline: str = "\n"
    delimiter: str = ","
    quoted: bool = True
    header: bool = True
    keys: KeySample = field(default_factory=KeySample)
    empty: bool = False
    by_row: bool = False
    repaired: bool = False
    collection: bool = False

    def problem(self, what: str, *, hint: str) -> InputError:
        """An InputError that names this file."""
        return InputError(f"{self.name}: {what}", hint=hint)

    def lines(self) -> AbstractContextManager[Iterator[str]]:
        """The lines of a text file; see open_lines."""
        return open_lines(self.path, self.compression, self.encoding, self.newline)


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
        problem = system_problem(error, path)
        hint = "Check the connection and run the same command again: finished files are kept."
        raise problem or NetworkError(f"{source.url} cannot be fetched: {error}", hint=hint) from error


def inspect(source: SourceFile, path: Path, config: ImportConfig) -> SourceTable:
    """Find out how a file is written and what its columns mean, from its schema or its first lines.

    Raises InputError for a damaged file or one without a caption column, ConfigError for a column that is not there.
    """
    try:
        with readable(source.name):
            table = _format_of(source, path)
            if table.kind == "parquet":
                return _parquet_table(table, config)
            return _json_table(table, config) if table.kind == "jsonl" else _separated_table(table, config)
    except CdkitError as error:
        message = f"{source.name}: {error.message.removeprefix(f'{source.name}: ')}"
        raise type(error)(message, hint=error.hint) from error


def _format_of(source: SourceFile, path: Path) -> SourceTable:
    with open(path, "rb") as handle:
        head = handle.read(HEAD_BYTES)
    if (wrong := wrong_download(head)) is not None:
        raise InputError(f"is {wrong[0]}", hint=wrong[1])
    name = source.name.split("?")[0].lower()
    kind = _KINDS.get(name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[-1])
    kind = "parquet" if head.startswith(_PARQUET) else kind
    if kind is None:
        raise InputError(
            "not a kind of file that can be imported",
            hint="Give parquet, csv, tsv or jsonl; text may be compressed as .gz or .zst.",
        )
    table = SourceTable(source.name, path, kind, compression=compression_of(head), collection=source.collection)
    if kind == "parquet":
        return table
    with open_bytes(path, table.compression) as plain:
        start = plain.read(HEAD_BYTES)
    encoding = encoding_of(start)
    return replace(
        table,
        encoding=encoding,
        newline=newline_of(start),
        delimiter="\t" if kind == "tsv" else ",",
        by_row=encoding == "utf-16",
    )


def _parquet_table(table: SourceTable, config: ImportConfig) -> SourceTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(table.path, "rb") as handle:
            schema = pq.read_schema(handle)
    except (pa.ArrowException, OSError) as error:
        hint = "The file may be truncated or not parquet at all; get it again."
        raise InputError(f"cannot be read as parquet: {' '.join(str(error).split())}", hint=hint) from error
    names, types = tuple(schema.names), tuple(str(kind) for kind in schema.types)
    layout = find_layout(names, pool=config.pool, caption_column=config.caption_column, url_column=config.url_column)
    for meaning in ("caption", "url"):
        for position in layout.columns.get(meaning, ()):
            if not _TEXT_TYPE.fullmatch(types[position]):
                raise InputError(
                    f"column {names[position]!r} holds {types[position].split('<')[0]} values, not text",
                    hint=f"Choose another column with --{meaning}-column, or write one row per {meaning}.",
                )
    return replace(table, names=names, types=types, layout=layout)


def _json_table(table: SourceTable, config: ImportConfig) -> SourceTable:
    with table.lines() as lines:
        sample = sampled_keys(lines, config)
    if not sample.lines:
        return replace(table, empty=True)
    return with_keys(replace(table, keys=sample), (), config)


def with_keys(table: SourceTable, more: tuple[str, ...], config: ImportConfig) -> SourceTable:
    """A jsonl file by the keys of its first lines and `more`, those that were found besides."""
    if not table.keys.objects:
        # Not one object: every line is rejected for what it is.
        return replace(table, by_row=True)
    names = (*table.keys.seen, *more)
    layout = keyed_layout(names, table.keys, config)
    several = any(len(positions) > 1 for positions in layout.columns.values())
    return replace(table, names=names, layout=layout, by_row=table.by_row or several)


def _separated_table(table: SourceTable, config: ImportConfig) -> SourceTable:
    """Header or not, separator and columns of a csv or tsv file, from its first lines."""
    with table.lines() as lines:
        sample = list(islice(lines, SAMPLE_LINES))
    plain = [line.rstrip("\r\n").split(table.delimiter) for line in sample if line.strip()]
    if not plain:
        return replace(table, empty=True)
    chosen = config.caption_column or config.url_column
    preset = preset_named(config.pool) if config.pool else None if chosen else headerless_preset(plain)
    if preset is not None and preset.header:
        if chosen:
            raise InputError("has no header line, so no column can be chosen by name", hint="Choose --pool alone.")
        values = Counter(map(len, plain)).most_common(1)[0][0]
        if values != len(preset.header):
            raise InputError(
                f"not the layout of pool {preset.name!r}: {values} values in a line instead of {len(preset.header)}",
                hint="Leave --pool out to have the layout detected.",
            )
        columns = {meaning: (position,) for position, meaning in enumerate(preset.header)}
        # These pools know no quoting: a quotation mark is a part of the caption.
        described = replace(table, names=preset.header, header=False, quoted=table.kind == "csv")
        return replace(described, layout=Layout(preset.name, columns))
    if table.kind == "csv" and "," not in sample[0]:
        table = replace(table, delimiter=next((mark for mark in ";\t|" if mark in sample[0]), ","))
    try:
        names = tuple(next(separated_reader(iter(sample), table.delimiter), []))
    except csv.Error as error:
        hint = "Repair it: every quoted name has to be closed, and no line end may stand in a name without quotes."
        raise InputError("the header line is broken", hint=hint) from error
    layout = find_layout(names, pool=config.pool, caption_column=config.caption_column, url_column=config.url_column)
    return replace(table, names=names, layout=layout)
