"""The one walk over a folder of pictures, and what tells a picture: its name there, its first bytes when it is opened.

Subfolders count, as most programs that train on folders have it (Hugging Face's imagefolder, EveryDream, SimpleTuner),
and pictures stand in the order of their paths. What is hidden (`.name`, `__MACOSX`, `@eaDir`) is no part of a folder.
Folders that are links are not followed: they may lead in circles, and a change behind them would go unseen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cdkit.core.errors import InputError
from cdkit.core.formatting import printable

_HIDDEN = frozenset({"__MACOSX", "@eaDir"})
NAMES_SHOWN = 5
# Bytes from the start of a file that tell its format.
START = 64
# What pictures are called in folders; what a file is, its content decides.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
# Photos that no decoder here reads: they are pictures of the folder, named by the error and never passed over.
UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".hif", ".jxl"})
# Formats that keep every pixel as it was.
EXACT_FORMATS = frozenset({"PNG", "GIF", "BMP", "TIFF"})

# Pillow's name of a format, and how its files begin. Pillow knows forty more formats, some of which start other
# programs (EPS) or are read by code that hardly anybody uses: only these are ever opened.
FORMATS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "AVIF": re.compile(rb"....ftyp(?:avif|avis|(?:mif1|msf1)(?:.{4})*?avi[fs])", re.DOTALL),
    "TIFF": re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"),
    "BMP": re.compile(rb"BM"),
}

_HEIC = "HEIC, the photos of phones"
_JPEG_XL = "JPEG XL"
_GIT_LFS = "a Git LFS pointer in place of the picture"
_PAGE = "a web page in place of the picture"
_FOREIGN = (
    (_HEIC, re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
    (_JPEG_XL, re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    (_GIT_LFS, re.compile(rb"version https://git-lfs")),
    (_PAGE, re.compile(rb"\s*(?:<!doctype\s+html|<html)", re.IGNORECASE)),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("PDF", re.compile(rb"%PDF")),
    ("a Photoshop document", re.compile(rb"8BPS")),
    ("SVG or another text in XML", re.compile(rb"\s*(?:\xef\xbb\xbf)?<(?:svg|\?xml)", re.IGNORECASE)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("a Windows metafile", re.compile(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", re.DOTALL)),
    ("a Windows icon", re.compile(rb"\0\0[\x01\x02]\0[^\0]")),
    ("OpenEXR", re.compile(rb"v/1\x01")),
    ("a Netpbm picture", re.compile(rb"P[1-7fF][\s#]")),
    ("a film", re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)),
    ("an archive", re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!")),
)
# What stands where the picture itself should be: leaving it out would train on less than is there.
_IN_PLACE = frozenset({_HEIC, _JPEG_XL, _GIT_LFS, _PAGE})

HINTS = {
    _HEIC: "Convert it to JPEG or PNG first: HEIC needs a decoder that cdkit does not ship.",
    _JPEG_XL: "Convert it to JPEG or PNG first.",
    _GIT_LFS: "Fetch what it points to: git lfs pull.",
    _PAGE: "Download the picture again.",
}


@dataclass(frozen=True)
class LeftOut:
    """A file of a folder that is no picture, and what it is where that is known."""

    name: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.what})" if self.what else self.name


@dataclass
class Listing:
    """A folder's files by their paths in it, `/` between the parts: pictures, others, and what is no file at all."""

    root: Path
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def list_folder(root: Path) -> Listing:
    """List a folder and its subfolders; raises InputError when it is no folder, or a part of it cannot be read."""
    if not root.is_dir():
        raise InputError(f"{printable(root)} is no folder.", hint="Give a folder of images.")
    listing = Listing(root)
    for folder, subfolders, names in os.walk(root, onerror=_unreadable):
        inside = Path(folder).relative_to(root)
        subfolders[:] = [name for name in subfolders if not _hidden(name)]
        for name in subfolders:
            # os.walk does not follow it.
            if os.path.islink(os.path.join(folder, name)):
                listing.left_out.append(LeftOut(printable(inside / name), "a link to a folder"))
        for name in names:
            if not _hidden(name):
                _add(listing, inside, name)
    # Names in one folder in their order, subfolders among them: as sorted paths stand.
    for paths in (listing.pictures, listing.others):
        paths.sort(key=PurePosixPath)
    listing.left_out.sort(key=lambda entry: PurePosixPath(entry.name))
    return listing


def _add(listing: Listing, inside: Path, name: str) -> None:
    path = (inside / name).as_posix()
    if not os.path.isfile(listing.root / inside / name):
        listing.left_out.append(LeftOut(printable(path), "no file"))
    elif is_picture_name(name):
        listing.pictures.append(path)
    else:
        listing.others.append(path)


def is_picture_name(name: str) -> bool:
    """Whether a file counts as a picture by its suffix, also one of a format that is not read."""
    return os.path.splitext(name)[1].lower() in SUFFIXES | UNREAD_SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN


def _unreadable(error: OSError) -> None:
    raise InputError(
        f"{printable(error.filename)} cannot be read: {error.strerror}.",
        hint="Check its permissions, or move it away.",
    ) from error


def shown(entries: Iterable[LeftOut] | Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    names = [str(entry) for entry in entries]
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{', '.join(names[:NAMES_SHOWN])}{more}"


def picture_format(start: bytes) -> str | None:
    """Pillow's name of the format that a file beginning like this has; None for all that is not opened."""
    return next((name for name, pattern in FORMATS.items() if pattern.match(start)), None)


def foreign_kind(start: bytes) -> str | None:
    """What a file that is no picture is, by its start, in words; None when that is not known."""
    return next((name for name, pattern in _FOREIGN if pattern.match(start)), None)


def is_of_another_kind(start: bytes) -> bool:
    """Whether a file is something else than a picture, not a picture that is damaged, missing, or unread here."""
    if picture_format(start) is not None:
        return False
    kind = foreign_kind(start)
    return kind is not None and kind not in _IN_PLACE
