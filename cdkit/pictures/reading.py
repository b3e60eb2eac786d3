"""A source of pictures, whatever it is: the one way that photos, regularization images and references are found.

A source is the first of these that fits: `embedded:NAME`, a single file, a regularization set of ours, what
cdkit sample drew, img2dataset's output, or a folder of pictures (`cdkit.pictures.folder`) with the captions beside
them (`cdkit.pictures.captions`), or of WebDataset's tar files.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cdkit.captions.pools import rights_and_ratings
from cdkit.core.columns import ColumnNames
from cdkit.core.errors import InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import printable
from cdkit.core.shards import parts
from cdkit.pictures.captions import read_captions
from cdkit.pictures.folder import LeftOut, foreign_kind, is_of_another_kind, is_picture_name, list_folder, shown
from cdkit.pictures.picture import BytesContent, CellContent, Content, FileContent, Picture
from cdkit.pictures.regularization_set import (
    IMAGES,
    iterate_regularization_set,
    refuse_unfinished,
    refuse_without_pictures,
)

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# A folder that cdkit sample made; the grid beside its images is none of them.
SAMPLES_NAME, SAMPLE_IMAGES = "samples.parquet", "images"
# What img2dataset calls the columns that are read of a row, and the column of an image.
_ROW = ("key", "url", "caption", "status")
_FORMATS = ("jpg", "png", "webp")
_MOST_TEXT = 1 << 20


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a source in their order, nothing decoded yet.

    left_out: files that are no pictures; rejected: pictures that the source itself could not get, by reason;
    missing: captions of pictures that are not there; notes: what is contradictory or strange, in sentences.
    """

    source: str
    layout: str
    pictures: list[Picture]
    left_out: list[LeftOut] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    notes: list[str] = field(default_factory=list)

    def without_others(self) -> PictureFolder:
        """Leave out what only looks like a picture by its name: documents, films, archives.

        What should be a picture but is damaged stays, so that opening it says so. Raises InputError when a file
        cannot be read.
        """
        kept, others = [], []
        for picture in self.pictures:
            start = picture.start()
            if is_of_another_kind(start):
                others.append(LeftOut(picture.key, foreign_kind(start) or ""))
            else:
                kept.append(picture)
        return replace(self, pictures=kept, left_out=[*self.left_out, *others])

    def left_out_notes(self) -> list[str]:
        """One note that names what is left out; none where nothing is."""
        return [f"{self.source}: left out, not images: {shown(self.left_out)}."] if self.left_out else []

    def all_notes(self) -> list[str]:
        """What is left out, and what is strange about the captions."""
        return [*self.left_out_notes(), *self.notes]


def read_pictures(source: str | Path, wanted: Callable[[Mapping[str, Any]], bool] | None = None) -> PictureFolder:
    """Find the pictures of a source with their captions; nothing is decoded.

    wanted: rows to keep of img2dataset's output. Raises InputError when the source is not there, unfinished, or a
    table or caption file of it is damaged; ConfigError for an embedded concept that does not exist.
    """
    text = str(source)
    if text.startswith(f"{EMBEDDED}:"):
        return PictureFolder(text, "embedded", _embedded(text))
    path, name = Path(source), printable(source)
    if path.is_file():
        return PictureFolder(name, "file", [Picture(name, name, FileContent(path))])
    if not path.is_dir():
        what = "is neither a folder nor a file" if path.exists() else "is no folder: it does not exist"
        raise InputError(f"{name} {what}.", hint="Give a folder of images.")
    refuse_unfinished(path)
    refuse_without_pictures(path)
    for folder in (path, path.parent) if path.name == IMAGES else (path,):
        if parts(folder / IMAGES):
            return PictureFolder(name, "regularization set", _stored(folder))
    if (path / SAMPLES_NAME).is_file() and (path / SAMPLE_IMAGES).is_dir():
        path = path / SAMPLE_IMAGES
    return read_img2dataset(path, name, wanted) or _of_files(name, path)


def _embedded(source: str) -> list[Picture]:
    from cdkit.embedded import concept_captions, concept_photos

    pictures = []
    photos = concept_photos(source.removeprefix(f"{EMBEDDED}:"))
    for number, (photo, caption) in enumerate(zip(photos, concept_captions(), strict=True), start=1):
        content = io.BytesIO()
        photo.save(content, format="PNG", compress_level=1)
        name = f"{source} photo {number}"
        pictures.append(Picture(f"photo {number}", name, BytesContent(content.getvalue()), caption))
    return pictures


def _stored(folder: Path) -> list[Picture]:
    return [
        Picture(row.key, f"{printable(folder)}, image {row.key}", BytesContent(row.image), row.caption, row.url)
        for row in iterate_regularization_set(folder)
    ]


def _of_files(name: str, path: Path) -> PictureFolder:
    listing = list_folder(path)
    if not listing.pictures and (archived := _webdataset(path)):
        return PictureFolder(name, "webdataset", archived)
    captions = read_captions(listing)
    pictures = [
        Picture(
            printable(picture),
            printable(path / picture),
            FileContent(path / picture),
            captions.by_picture.get(picture),
            captions.urls.get(picture),
            captions.said.get(picture, {}),
        )
        for picture in listing.pictures
    ]
    others = [LeftOut(printable(other)) for other in listing.others if other not in captions.files]
    return PictureFolder(
        name,
        captions.layout,
        pictures,
        left_out=[*others, *listing.left_out],
        missing=len(captions.missing),
        notes=captions.notes,
    )


def read_img2dataset(
    folder: Path, source: str, wanted: Callable[[Mapping[str, Any]], bool] | None = None
) -> PictureFolder | None:
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
                said = rights_and_ratings(row)
                images[key] = Picture(key, name, contents[key], row.get("caption"), row.get("url"), said)
        rejected["no_row"] += len(contents.keys() - rows.keys())
    if not images and not layouts:
        return None
    return PictureFolder(source, "+".join(sorted(layouts)), list(images.values()), rejected=dict(+rejected))


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
        columns |= {name: name for name in table.schema_arrow.names if rights_and_ratings({name: "?"})}
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
        images = [(_key(name), content) for name, content in _members(archive) if is_picture_name(name)]
        return "webdataset", {PurePosixPath(key).name: content for key, content in images}, rows
    files = path.with_suffix("")
    pictures = sorted(item for item in files.iterdir() if is_picture_name(item.name)) if files.is_dir() else []
    return "files", {item.stem: FileContent(item) for item in pictures if item.is_file()}, rows


def has_picture_column(path: Path) -> bool:
    """Whether a shard of img2dataset's output holds the pictures themselves; raises InputError when it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(name in _column_names(path, pq.ParquetFile(path)) for name in _FORMATS)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{printable(path)} is damaged: {error}", hint="Get this shard again.") from error


def archived_pictures(path: Path) -> Iterator[tuple[str, Content]]:
    """The pictures in a tar file, by the whole of their keys and by the last part, or in a shard of img2dataset."""
    if path.suffix.lower() != ".tar":
        yield from _read_shard(path)[1].items()
        return
    pictures = [(_key(name), content) for name, content in _members(path) if is_picture_name(name)]
    yield from ((PurePosixPath(key).name, content) for key, content in pictures)
    yield from pictures


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


def _webdataset(folder: Path) -> list[Picture]:
    """Tar files of KEY.jpg (or another format), with captions in KEY.txt, or as `caption` in KEY.json."""
    pictures: list[Picture] = []
    for archive in sorted(path for path in folder.glob("*.tar") if path.is_file()):
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
            place = f"{archive.stem}/{printable(key)}"
            pictures.append(Picture(place, name, content, caption or None, url, rights_and_ratings(row)))
    return pictures


def _text(content: FileContent) -> str:
    return content.read_at_most(min(content.size or 0, _MOST_TEXT)).decode("utf-8-sig", "replace")


def _facts(content: FileContent) -> Mapping[str, Any]:
    try:
        values = json.loads(_text(content))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
