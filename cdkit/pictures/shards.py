"""Pictures in shards: what img2dataset wrote in any of its layouts, and tar files in WebDataset's layout."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cdkit.core.columns import ColumnNames
from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.folder import is_picture_name
from cdkit.pictures.picture import CellContent, Content, FileContent, Picture

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# What img2dataset calls the columns that are read of a row, and the column of an image.
_ROW = ("key", "url", "caption", "status")
_FORMATS = ("jpg", "png", "webp")
_MOST_TEXT = 1 << 20


@dataclass(frozen=True)
class Shards:
    """The pictures of a folder of shards and its layout; rejected: what could not be used, by reason."""

    layout: str
    pictures: list[Picture]
    rejected: dict[str, int] = field(default_factory=dict)


def read_img2dataset(folder: Path, wanted: Callable[[Mapping[str, Any]], bool] | None = None) -> Shards | None:
    """img2dataset's output, its images joined with their rows by key; None when the folder is something else.

    wanted: rows to keep, in an output of millions. Raises InputError for a shard that is damaged.
    """
    images: dict[str, Picture] = {}
    rejected: Counter[str] = Counter()
    layouts = set()
    for path in sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit()):
        layout, contents, rows = _read_shard(path)
        if layout is None:
            return None
        layouts.add(layout)
        for key, row in rows.items():
            if row.get("status") not in (None, "success"):
                rejected[str(row["status"])] += 1
            elif key not in contents:
                rejected["missing"] += 1
            elif wanted is None or wanted(row):
                name = f"{printable(folder)}, image {key}"
                images[key] = Picture(key, name, contents[key], row.get("caption"), row.get("url"))
        rejected["no_row"] += len(contents.keys() - rows.keys())
    if not images and not layouts:
        return None
    return Shards("+".join(sorted(layouts)), list(images.values()), dict(+rejected))


def _read_shard(path: Path) -> tuple[str | None, Mapping[str, Content], dict[str, dict[str, Any]]]:
    """Layout, contents by key and rows by key of one shard; layout None when the table is not img2dataset's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        names = _column_names(path, table)
        if "key" not in names or "status" not in names:
            return None, {}, {}
        columns = {name: names[name] for name in _ROW if name in names}
        # By key, never by place: rows stand in the order in which downloads ended.
        rows = {
            str(row[names["key"]]): {name: row[column] for name, column in columns.items()}
            for row in table.read(columns=list(columns.values())).to_pylist()
        }
        column = next((names[name] for name in _FORMATS if name in names), None)
        if column is not None:
            return "parquet", dict(_cells(path, table, names["key"], column)), rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{printable(path)} is damaged: {error}", hint="Run img2dataset again for this shard."
        ) from error
    archive = path.with_suffix(".tar")
    if archive.exists():
        return "webdataset", {PurePosixPath(key).name: content for key, content in _images(archive)}, rows
    files = path.with_suffix("")
    pictures = sorted(item for item in files.iterdir() if is_picture_name(item.name)) if files.is_dir() else []
    return "files", {item.stem: FileContent(item) for item in pictures if item.is_file()}, rows


def _column_names(path: Path, table: pq.ParquetFile) -> dict[str, str]:
    """The columns of a shard's table as it spells them, by what img2dataset calls them."""
    names = ColumnNames(tuple(table.schema_arrow.names), where=printable(path))
    places = {name: names.position(name, hint="Rename or remove one of them.") for name in (*_ROW, *_FORMATS)}
    return {name: names.names[place] for name, place in places.items() if place is not None}


def _cells(path: Path, table: pq.ParquetFile, key: str, column: str) -> Iterator[tuple[str, Content]]:
    for group in range(table.num_row_groups):
        keys = table.read_row_group(group, columns=[key])[key].to_pylist()
        for row, name in enumerate(keys):
            yield str(name), CellContent(path, group, row, column)


def _images(archive: Path) -> Iterator[tuple[str, Content]]:
    for name, content in _members(archive):
        if is_picture_name(name):
            yield _key(name), content


def _members(archive: Path) -> Iterator[tuple[str, FileContent]]:
    """The files of a tar and where their bytes lie in it."""
    try:
        with tarfile.open(archive, "r:") as members:
            for member in members:
                if member.isreg() and not member.issparse():
                    yield member.name, FileContent(archive, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{printable(archive)} is damaged: {error}", hint="Make or download this shard again."
        ) from error


def _key(name: str) -> str:
    """What a WebDataset's sample is called: the path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return (path.parent / path.name.partition(".")[0]).as_posix()


def read_webdataset(folder: Path) -> Shards | None:
    """Tar files of KEY.jpg (or another format), with captions in KEY.txt, or as `caption` in KEY.json."""
    pictures: list[Picture] = []
    archives = sorted(path for path in folder.glob("*.tar") if path.is_file())
    for archive in archives:
        texts: dict[str, str] = {}
        facts: dict[str, Mapping[str, Any]] = {}
        images = []
        for name, content in _members(archive):
            if is_picture_name(name):
                images.append((_key(name), content))
            elif name.lower().endswith(".txt"):
                texts[_key(name)] = _text(content)
            elif name.lower().endswith(".json"):
                facts[_key(name)] = _facts(content)
        for key, content in images:
            row = facts.get(key, {})
            caption = texts.get(key) or row.get("caption") or row.get("text")
            caption = " ".join(caption.split()) if isinstance(caption, str) else None
            url = row.get("url") if isinstance(row.get("url"), str) else None
            name = f"{printable(archive)}, image {printable(key)}"
            pictures.append(Picture(f"{archive.stem}/{printable(key)}", name, content, caption or None, url))
    return Shards("webdataset", pictures) if pictures else None


def _text(content: FileContent) -> str:
    return content.read_at_most(min(content.size or 0, _MOST_TEXT)).decode("utf-8-sig", "replace")


def _facts(content: FileContent) -> Mapping[str, Any]:
    try:
        values = json.loads(_text(content))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
