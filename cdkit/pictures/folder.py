"""The one walk over a folder of pictures: what is a picture by its name, what stands beside them, what is left out.

Subfolders count, as most programs that train on folders have it (Hugging Face's imagefolder, EveryDream, SimpleTuner),
and pictures stand in the order of their paths. What is hidden (`.name`, `__MACOSX`, `@eaDir`) is no part of a folder.
Folders that are links are not followed: they may lead in circles, and a change behind them would go unseen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cdkit.core.errors import InputError
from cdkit.core.formatting import printable
from cdkit.pictures.formats import SUFFIXES, UNREAD_SUFFIXES

_HIDDEN = frozenset({"__MACOSX", "@eaDir"})
NAMES_SHOWN = 5


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
