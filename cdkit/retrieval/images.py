"""Images that are there already: img2dataset's output in any layout, or a folder of pictures with captions."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import CellContent, Content, FetchedImage, FileContent
from cdkit.retrieval.failures import FetchFailure
from cdkit.retrieval.web_urls import spellings
from cdkit.text import caption_id, clean_caption

if TYPE_CHECKING:
    import pyarrow.parquet as pq

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# What img2dataset calls the column, the tar member and the file of an image.
_FORMATS = ("jpg", "png", "webp")


@dataclass(frozen=True)
class StoredImage:
    """One image at hand. key: unique in its source; caption and url: None where the source does not say."""

    key: str
    content: Content
    caption: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class StoredImages:
    """The images of a folder and its layout; rejected: what could not be used, by reason."""

    layout: str
    images: list[StoredImage]
    rejected: dict[str, int] = field(default_factory=dict)


def read_images(folder: Path, wanted: Sequence[Candidate] | None = None) -> StoredImages:
    """Find the images of `folder`, whatever its layout; nothing is decoded.

    wanted: keep only what these candidates may be joined with, in an output of millions of rows. Raises InputError
    when the folder is missing, holds no images, or a table of it is damaged.
    """
    from cdkit.retrieval.captioned_folder import read_captioned_folder

    if not folder.is_dir():
        raise InputError(f"{folder} is no folder.", hint="Give a folder of images, or what img2dataset wrote.")
    found = _read_img2dataset(folder, None if wanted is None else _Wanted(wanted)) or read_captioned_folder(folder)
    if not found.images and wanted is None:
        reasons = ", ".join(f"{number} {reason}" for reason, number in found.rejected.items()) or "it holds none"
        raise InputError(
            f"{folder} holds no image that can be used ({reasons}).",
            hint="Captions are expected in a .txt beside each image, in metadata.jsonl, or in caption.txt.",
        )
    return found


class _Wanted:
    """What a row must have to be of use to some candidates: one of their URLs, or a caption of one without URL."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._urls = {_same(candidate.url) for candidate in candidates if candidate.url}
        self._captions = {candidate.caption_id for candidate in candidates if not candidate.url}

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        if row.get("url") and _same(row["url"]) in self._urls:
            return True
        caption = row.get("caption")
        return bool(self._captions) and caption is not None and caption_id(clean_caption(caption)) in self._captions


def _read_img2dataset(folder: Path, wanted: _Wanted | None) -> StoredImages | None:
    """img2dataset's output, its images joined with their rows by key; None when the folder is something else."""
    tables = sorted(path for path in folder.glob("*.parquet") if path.stem.isdigit())
    images: dict[str, StoredImage] = {}
    rejected: Counter[str] = Counter()
    layouts = set()
    for path in tables:
        layout, contents, rows = _read_shard(path)
        if layout is None:
            return None
        layouts.add(layout)
        for key, row in rows.items():
            if row.get("status") not in (None, "success"):
                rejected[str(row["status"])] += 1
            elif key not in contents:
                rejected["missing"] += 1
            elif wanted is None or row in wanted:
                images[key] = StoredImage(key, contents[key], row.get("caption"), row.get("url"))
        rejected["no_row"] += len(contents.keys() - rows.keys())
    if not images and not layouts:
        return None
    return StoredImages("+".join(sorted(layouts)), list(images.values()), {k: n for k, n in rejected.items() if n})


def _read_shard(path: Path) -> tuple[str | None, Mapping[str, Content], dict[str, dict[str, Any]]]:
    """Layout, contents by key and rows by key of one shard; layout None when the table is not img2dataset's."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        names = table.schema_arrow.names
        if "key" not in names or "status" not in names:
            return None, {}, {}
        wanted = [name for name in ("key", "url", "caption", "status") if name in names]
        # By key, never by place: rows stand in the order in which downloads ended.
        rows = {str(row["key"]): row for row in table.read(columns=wanted).to_pylist()}
        column = next((name for name in _FORMATS if name in names), None)
        if column is not None:
            return "parquet", dict(_cells(path, table, column)), rows
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{path} is damaged: {error}", hint="Run img2dataset again for this shard.") from error
    archive = path.with_suffix(".tar")
    if archive.exists():
        return "webdataset", dict(_members(archive)), rows
    files = path.with_suffix("")
    return "files", {item.stem: FileContent(item) for item in _pictures(files)}, rows


def _cells(path: Path, table: pq.ParquetFile, column: str) -> Iterator[tuple[str, Content]]:
    for group in range(table.num_row_groups):
        keys = table.read_row_group(group, columns=["key"])["key"].to_pylist()
        for row, key in enumerate(keys):
            yield str(key), CellContent(path, group, row, column)


def _members(archive: Path) -> Iterator[tuple[str, Content]]:
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = Path(member.name)
                if member.isreg() and name.suffix.lstrip(".").lower() in {*_FORMATS, "jpeg"}:
                    yield name.stem, FileContent(archive, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{archive} is damaged: {error}", hint="Run img2dataset again for this shard.") from error


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(item for item in folder.iterdir() if item.suffix.lower() in IMAGE_SUFFIXES and item.is_file())


def match_candidates(candidates: Sequence[Candidate], stored: Sequence[StoredImage]) -> dict[int, FetchedImage]:
    """The image of each candidate that has one, by its place: joined by URL, else by caption.

    An image serves one candidate only; where several images have a caption, candidates take them in key order.
    """
    by_url: dict[str, StoredImage] = {}
    by_caption: dict[int, list[StoredImage]] = {}
    for image in sorted(stored, key=lambda image: image.key):
        if image.url:
            by_url.setdefault(_same(image.url), image)
        if image.caption is not None:
            by_caption.setdefault(caption_id(clean_caption(image.caption)), []).append(image)
    found: dict[int, FetchedImage] = {}
    used: set[str] = set()
    for place, candidate in enumerate(candidates):
        same = by_url.get(_same(candidate.url)) if candidate.url else None
        if same is not None and same.key not in used:
            used.add(same.key)
            found[place] = FetchedImage(candidate.url, same.content)
    for place, candidate in enumerate(candidates):
        # A candidate whose URL is known to show something else is never given another picture.
        if place in found or (candidate.url and by_url):
            continue
        free = next((image for image in by_caption.get(candidate.caption_id, []) if image.key not in used), None)
        if free is not None:
            used.add(free.key)
            found[place] = FetchedImage(candidate.url, free.content)
    return found


def _same(url: str) -> str:
    """One text for all spellings of a URL."""
    try:
        return spellings(url)[0].text
    except FetchFailure:
        return url
