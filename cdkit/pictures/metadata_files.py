"""metadata.jsonl and metadata.csv of Hugging Face's imagefolder, and the pictures that such files mean."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cdkit.core.columns import ColumnNames
from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.content import FileContent

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
FILE_KEY, CAPTION_KEYS = "file_name", ("text", "caption")


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


@dataclass
class MetadataCaptions:
    """What a metadata file says: pairs of a picture's path and its caption, and notes on what is strange."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def metadata_captions(path: Path) -> MetadataCaptions:
    """Read a metadata file; raises InputError, with the line, for one that is damaged or names no file."""
    metadata = MetadataCaptions()
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
        metadata.rows.append((PurePosixPath(name.strip()).as_posix(), captions[0] if captions else ""))
    if differing:
        metadata.notes.append(f"{printable(path)}: text and caption differ in {differing} rows; text counts.")
    if metadata.rows and not captioned:
        metadata.notes.append(f"{printable(path)} has neither text nor caption: it captions nothing.")
    return metadata


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
            if row:
                yield reader.line_num, _named(path, zip(header, row, strict=False))
    except csv.Error as error:
        raise InputError(f"{printable(path)}, line {reader.line_num}: {error}", hint="Mend that line.") from error


def _named(path: Path, values: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """The values that mean something, by the names of FILE_KEY and CAPTION_KEYS."""
    pairs = [(str(name), value) for name, value in values]
    names = ColumnNames(tuple(name for name, _ in pairs), where=printable(path))
    places = {key: names.position(key, hint="Leave one of them out.") for key in (FILE_KEY, *CAPTION_KEYS)}
    return {key: pairs[place][1] for key, place in places.items() if place is not None}


def read_text(path: Path, content: bytes) -> str:
    """A text file's content; raises InputError when it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{printable(path)} cannot be read: {error.reason} at byte {error.start}.",
            hint="It must be a UTF-8 text file.",
        ) from error
