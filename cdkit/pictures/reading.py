"""A source of pictures, whatever it is: the one way that photos, regularization images and references are found.

A source is the first of these that fits: `embedded:NAME`, a single file, a regularization set of ours, what
cdkit sample drew, img2dataset's output, or a folder of pictures (`cdkit.pictures.folder`) with the captions beside
them (`cdkit.pictures.captions`), or of WebDataset's tar files.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import printable
from cdkit.core.shards import parts
from cdkit.pictures.captions import read_captions
from cdkit.pictures.folder import LeftOut, foreign_kind, is_of_another_kind, list_folder, shown
from cdkit.pictures.picture import BytesContent, FileContent, Picture
from cdkit.pictures.regularization_set import IMAGES, iterate_regularization_set, refuse_unfinished
from cdkit.pictures.shards import Shards, read_img2dataset, read_webdataset

# A folder that cdkit sample made; the grid beside its images is none of them.
SAMPLES_NAME, SAMPLE_IMAGES = "samples.parquet", "images"


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
        if path.exists():
            raise InputError(f"{name} is neither a folder nor a file.", hint="Give a folder of images.")
        raise InputError(f"{name} is no folder: it does not exist.", hint="Give a folder of images.")
    refuse_unfinished(path)
    if parts(path / IMAGES):
        return PictureFolder(name, "regularization set", _stored(path))
    if path.name == IMAGES and parts(path):
        return PictureFolder(name, "regularization set", _stored(path.parent))
    if (path / SAMPLES_NAME).is_file() and (path / SAMPLE_IMAGES).is_dir():
        path = path / SAMPLE_IMAGES
    shards = read_img2dataset(path, wanted)
    if shards is not None:
        return _of_shards(name, shards)
    return _of_files(name, path)


def _embedded(source: str) -> list[Picture]:
    from cdkit.embedded import concept_photos

    pictures = []
    for number, photo in enumerate(concept_photos(source.removeprefix(f"{EMBEDDED}:")), start=1):
        content = io.BytesIO()
        photo.save(content, format="PNG", compress_level=1)
        pictures.append(Picture(f"photo {number}", f"{source} photo {number}", BytesContent(content.getvalue())))
    return pictures


def _stored(folder: Path) -> list[Picture]:
    return [
        Picture(row.key, f"{printable(folder)}, image {row.key}", BytesContent(row.image), row.caption, row.url)
        for row in iterate_regularization_set(folder)
    ]


def _of_shards(name: str, shards: Shards) -> PictureFolder:
    return PictureFolder(name, shards.layout, shards.pictures, rejected=shards.rejected)


def _of_files(name: str, path: Path) -> PictureFolder:
    listing = list_folder(path)
    if not listing.pictures:
        shards = read_webdataset(path)
        if shards is not None:
            return _of_shards(name, shards)
    captions = read_captions(listing)
    pictures = [
        Picture(
            printable(picture),
            printable(path / picture),
            FileContent(path / picture),
            captions.by_picture.get(picture),
            captions.urls.get(picture),
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
