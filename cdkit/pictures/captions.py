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

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.content import FileContent
from cdkit.pictures.folder import Listing, shown
from cdkit.pictures.metadata_files import METADATA_NAMES, PictureNames, metadata_captions, read_text

CAPTIONS_NAME = "caption.txt"
PATHS_NAME = "images.txt"
URLS_NAME = "urls.txt"
BESIDE_SUFFIXES = (".txt", ".caption")
# More is no caption: a log, a book.
MOST_CAPTION_BYTES = 1 << 20


@dataclass
class Captions:
    """What a folder's files say of its pictures, by their paths in it.

    files: the caption files themselves; missing: pictures that are named and not there; notes: what is contradictory
    or strange.
    """

    layout: str = "text files"
    by_picture: dict[str, str] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_captions(listing: Listing) -> Captions:
    """Read every caption file of a folder; raises InputError for one that is damaged or does not fit the pictures."""
    names = PictureNames(listing.pictures)
    captions = Captions()
    said: dict[str, str] = {}
    contradictions: dict[str, str] = {}
    for file, picture, caption in _all(listing, names, captions):
        text = " ".join(caption.split()).encode("utf-8", "replace").decode("utf-8")
        if not text:
            continue
        if captions.by_picture.setdefault(picture, text) != text:
            contradictions.setdefault(picture, f"{printable(picture)} ({printable(said[picture])}, {printable(file)})")
        said.setdefault(picture, file)
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


def _all(listing: Listing, names: PictureNames, captions: Captions) -> Iterator[tuple[str, str, str]]:
    """(caption file, picture, caption) in the order in which they count."""
    yield from _beside(listing, captions)
    for kind in METADATA_NAMES:
        for file in (other for other in listing.others if PurePosixPath(other).name.lower() == kind):
            captions.files.add(file)
            captions.layout = "imagefolder"
            inside = PurePosixPath(file).parent
            metadata = metadata_captions(listing.root / file)
            captions.notes += metadata.notes
            for name, caption in metadata.rows:
                picture = names.find(os.path.normpath(inside / name))
                if picture is None:
                    captions.missing.append(printable(name))
                else:
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
                yield file, picture, _one_caption(listing, file)


def _one_caption(listing: Listing, file: str) -> str:
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
