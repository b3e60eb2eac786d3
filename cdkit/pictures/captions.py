"""What the pictures of a folder are captioned: every convention that is written here or met elsewhere.

For each picture the first of these that says something counts; where two say different things, a note names them:

1. a text file of the same name: `a.txt` beside `a.jpg` (kohya, most others), joined to one line;
2. `a.caption` beside `a.jpg` (kohya);
3. `metadata.jsonl`, then `metadata.csv` (Hugging Face's imagefolder): rows with `file_name`, relative to the file's
   folder, and `text` or `caption`, in any folder;
4. `caption.txt`, a line per picture in the order of `images.txt`, or of the sorted names where that is missing
   (Adobe's and diffusers' scripts), with their URLs in `urls.txt`; in the folder itself.
"""

from __future__ import annotations

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cdkit.captions.pools import rights_and_ratings
from cdkit.core.columns import ColumnNames
from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.folder import Listing, shown
from cdkit.pictures.picture import FileContent

CAPTIONS_NAME = "caption.txt"
PATHS_NAME = "images.txt"
URLS_NAME = "urls.txt"
BESIDE_SUFFIXES = (".txt", ".caption")
# More is no caption: a log, a book.
MOST_CAPTION_BYTES = 1 << 20
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
# No caption is longer; the csv module's own limit is the process's, and others set it.
LONGEST_VALUE = 131_072
FILE_KEY, CAPTION_KEYS = "file_name", ("text", "caption")


@dataclass
class Captions:
    """What a folder's files say of its pictures, by their paths in it.

    said: of rights and ratings, by column; files: the caption files themselves; missing: pictures that are named and
    not there; notes: what is contradictory or strange.
    """

    layout: str = "text files"
    by_picture: dict[str, str] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_captions(listing: Listing) -> Captions:
    """Read every caption file of a folder; raises InputError for one that is damaged or does not fit the pictures."""
    names = PictureNames(listing.pictures)
    captions = Captions()
    sources: dict[str, str] = {}
    contradictions: dict[str, str] = {}
    for file, picture, caption in _in_order(listing, names, captions):
        text = " ".join(caption.split()).encode("utf-8", "replace").decode("utf-8")
        if not text:
            continue
        if captions.by_picture.setdefault(picture, text) != text:
            both = f"{printable(sources[picture])}, {printable(file)}"
            contradictions.setdefault(picture, f"{printable(picture)} ({both})")
        sources.setdefault(picture, file)
    if contradictions:
        captions.notes.append(
            f"{printable(listing.root)}: {len(contradictions)} pictures have captions that contradict each other; the "
            f"file named first counts: {shown(list(contradictions.values()))}."
        )
    if captions.missing:
        captions.notes.append(
            f"{printable(listing.root)}: captions of pictures that are not there: {shown(captions.missing)}."
        )
    return captions


def _in_order(listing: Listing, names: PictureNames, captions: Captions) -> Iterator[tuple[str, str, str]]:
    """(caption file, picture, caption) in the order in which they count."""
    yield from _beside(listing, captions)
    for kind in METADATA_NAMES:
        for file in (other for other in listing.others if PurePosixPath(other).name.lower() == kind):
            captions.files.add(file)
            captions.layout = "imagefolder"
            inside = PurePosixPath(file).parent
            rows, notes = metadata_captions(listing.root / file)
            captions.notes += notes
            for name, caption, said in rows:
                picture = names.find(os.path.normpath(inside / name))
                if picture is None:
                    captions.missing.append(printable(name))
                else:
                    captions.said[picture] = {**said, **captions.said.get(picture, {})}
                    yield file, picture, caption
    # A picture called caption.jpg has its own caption in that file.
    if listing.pictures and CAPTIONS_NAME in listing.others and CAPTIONS_NAME not in captions.files:
        yield from _listed(listing, names, captions)


def _beside(listing: Listing, captions: Captions) -> Iterator[tuple[str, str, str]]:
    files: dict[tuple[str, str], list[str]] = {}
    for other in listing.others:
        stem, suffix = os.path.splitext(other)
        if suffix.lower() in BESIDE_SUFFIXES:
            files.setdefault((stem, suffix.lower()), []).append(other)
    for suffix in BESIDE_SUFFIXES:
        for picture in listing.pictures:
            for file in files.get((os.path.splitext(picture)[0], suffix), []):
                captions.files.add(file)
                yield file, picture, _caption_file(listing, file)


def _caption_file(listing: Listing, file: str) -> str:
    path = listing.root / file
    content = FileContent(path).read_at_most(MOST_CAPTION_BYTES + 1)
    if len(content) > MOST_CAPTION_BYTES:
        raise InputError(f"{printable(path)} is too long for a caption.", hint="Shorten it, or move it away.")
    return read_text(path, content)


def _listed(listing: Listing, names: PictureNames, captions: Captions) -> Iterator[tuple[str, str, str]]:
    """caption.txt; images.txt holds paths from wherever it was written, whose longest end that is a picture counts."""
    captions.layout = "diffusers"
    listed: list[str | None] = [*sorted(listing.pictures)]
    if PATHS_NAME in listing.others and PATHS_NAME not in captions.files:
        lines = _lines(listing, PATHS_NAME, captions)
        while lines and not lines[-1].strip():
            lines.pop()
        listed = [names.find_end(line.strip()) for line in lines]
        captions.missing += [printable(line) for line, name in zip(lines, listed, strict=True) if name is None]
    for name, caption in zip(listed, _paired(listing, CAPTIONS_NAME, captions, len(listed)), strict=True):
        if name is not None:
            yield CAPTIONS_NAME, name, caption
    if URLS_NAME in listing.others and URLS_NAME not in captions.files:
        urls = _paired(listing, URLS_NAME, captions, len(listed))
        captions.urls = {name: url for name, url in zip(listed, urls, strict=True) if name is not None and url.strip()}


def _paired(listing: Listing, file: str, captions: Captions, images: int) -> list[str]:
    lines = _lines(listing, file, captions)
    while len(lines) > images and not lines[-1].strip():
        lines.pop()
    if len(lines) != images:
        raise InputError(
            f"{printable(listing.root / file)} has {len(lines)} lines for {images} images.",
            hint=f"Give one line per image, in the order of {PATHS_NAME} or of the sorted file names.",
        )
    return lines


def _lines(listing: Listing, file: str, captions: Captions) -> list[str]:
    captions.files.add(file)
    path = listing.root / file
    return read_text(path, FileContent(path).read()).splitlines()


class PictureNames:
    """The pictures of a folder, found by what other programs call them."""

    def __init__(self, pictures: Sequence[str]) -> None:
        # macOS writes é as two characters where others write one.
        composed = {unicodedata.normalize("NFC", name): name for name in pictures}
        self._names = composed | {name: name for name in pictures}

    def find(self, name: str) -> str | None:
        """The picture of this path; None when there is none."""
        for path in (name, name.replace("\\", "/")):
            picture = self._names.get(path) or self._names.get(unicodedata.normalize("NFC", path))
            if picture is not None:
                return picture
        return None

    def find_end(self, path: str) -> str | None:
        """The picture that is the longest end of a path from wherever it was written."""
        parts = PurePosixPath(path.replace("\\", "/")).parts
        ends = (self.find("/".join(parts[start:])) for start in range(len(parts)))
        return self.find(path) or next((name for name in ends if name is not None), None)


def metadata_captions(path: Path) -> tuple[list[tuple[str, str, dict[str, str]]], list[str]]:
    """A metadata file's pictures: path, caption, and what is said of rights; and notes on what is strange in it.

    Raises InputError, with the line, for one that is damaged or names no file.
    """
    pictures: list[tuple[str, str, dict[str, str]]] = []
    notes: list[str] = []
    captioned, differing = False, 0
    rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _csv_rows(path)
    for number, row in rows:
        name = row.get(FILE_KEY)
        if not isinstance(name, str) or not name.strip():
            raise InputError(
                f"{printable(path)}, line {number}: no file_name.", hint="Every line must name its image."
            )
        captions = [row[key] for key in CAPTION_KEYS if row.get(key) is not None]
        captioned = captioned or any(key in row for key in CAPTION_KEYS)
        if not all(isinstance(caption, str) for caption in captions):
            raise InputError(f"{printable(path)}, line {number}: the caption is no text.", hint="Give it as a string.")
        captions = [caption for caption in captions if caption.strip()]
        differing += len({" ".join(caption.split()) for caption in captions}) > 1
        caption = captions[0] if captions else ""
        pictures.append((PurePosixPath(name.strip()).as_posix(), caption, rights_and_ratings(row)))
    if differing:
        notes.append(f"{printable(path)}: text and caption differ in {differing} rows; text counts.")
    if pictures and not captioned:
        notes.append(f"{printable(path)} has neither text nor caption: it captions nothing.")
    return pictures, notes


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # A JSON string may hold other characters that end lines elsewhere.
    for number, line in enumerate(read_text(path, FileContent(path).read()).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{printable(path)}, line {number}: {error}", hint="Every line must be a JSON object."
            ) from error
        if not isinstance(values, dict):
            raise InputError(f"{printable(path)}, line {number}: no JSON object.", hint="Every line must be one.")
        yield number, _named(path, values.items())


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text(path, FileContent(path).read()), newline=""), strict=True)
    try:
        header = next(reader, [])
        if FILE_KEY not in _named(path, ((name, "") for name in header)):
            raise InputError(f"{printable(path)} has no column file_name.", hint="Every row must name its image.")
        for row in reader:
            if max(map(len, row), default=0) > LONGEST_VALUE:
                raise csv.Error(f"a value of more than {LONGEST_VALUE:,} characters")
            if row:
                yield reader.line_num, _named(path, zip(header, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{printable(path)}, line {reader.line_num}: {error}", hint="Mend that line.") from error


def _named(path: Path, values: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """The values that mean something, by the names of FILE_KEY and CAPTION_KEYS, and rights and ratings."""
    pairs = [(str(name), value) for name, value in values]
    names = ColumnNames(tuple(name for name, _ in pairs), where=printable(path))
    places = {key: names.position(key, hint="Leave one of them out.") for key in (FILE_KEY, *CAPTION_KEYS)}
    named = {key: pairs[place][1] for key, place in places.items() if place is not None}
    return {**rights_and_ratings(dict(pairs)), **named}


def read_text(path: Path, content: bytes) -> str:
    """A text file's content; raises InputError when it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{printable(path)} cannot be read: {error.reason} at byte {error.start}.",
            hint="It must be a UTF-8 text file.",
        ) from error
