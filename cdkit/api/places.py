"""Where things are: paths and results as inputs, pictures in memory as folders, and results without a name."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cdkit.core.errors import ConfigError, InputError, writing
from cdkit.core.fingerprints import EMBEDDED, cache_folder
from cdkit.core.storage import atomic_path
from cdkit.deltas.delta import read_header
from cdkit.inputs import local_copy

if TYPE_CHECKING:
    from PIL import Image

    Photo = str | os.PathLike[str] | Image.Image
    # A folder, `embedded:NAME`, or pictures one by one.
    Photos = str | os.PathLike[str] | Iterable[Photo]

# A path, a name such as `embedded` or `hub:USER/NAME`, or what an earlier call returned.
Place = str | os.PathLike[str]
Value = TypeVar("Value")
KEPT_LETTERS = 16
# What PNG keeps as it is.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def text_of(place: Place) -> str:
    """A path or a result as stages take it; raises ConfigError for anything else."""
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ConfigError(
            f"{type(place).__name__} is no path.", hint="Give a path, a name, or what a cdkit call returned."
        )
    return text


def texts_of(places: Place | Iterable[Place]) -> list[str]:
    """One or several paths as a list."""
    if isinstance(places, str | os.PathLike):
        return [text_of(places)]
    if not isinstance(places, Iterable):
        raise ConfigError(f"{type(places).__name__} is no list of paths.", hint="Give a path, or a list of paths.")
    return [text_of(place) for place in places]


def folder_of(place: Place) -> Path:
    """A folder that is given; raises ConfigError for what is no path, and for an empty one."""
    text = text_of(place)
    if not text:
        raise ConfigError("A folder's name is empty.", hint="Give a path; '.' is the folder that you are in.")
    return Path(text)


def named(values: Mapping[str, Value] | None, what: str) -> dict[str, Value]:
    """What is given by name, if anything is; raises ConfigError for anything but a mapping."""
    if values is not None and not isinstance(values, Mapping):
        raise ConfigError(f"{type(values).__name__} is no mapping.", hint=f"Give {{'dog': {what}, …}}.")
    return dict(values or {})


def list_of(texts: str | Iterable[str]) -> list[str]:
    """One text or several as a list; raises ConfigError for anything else."""
    if not isinstance(texts, Iterable):
        raise ConfigError(f"{type(texts).__name__} is no text.", hint="Give a text, or a list of texts.")
    return [texts] if isinstance(texts, str) else list(texts)


def optional_text(place: Place | None) -> str | None:
    """A path or a result as stages take it, where one is given."""
    return None if place is None else text_of(place)


def optional_photos(photos: Photos | None) -> str | None:
    """The folder of photos, where some are given."""
    return None if photos is None else photos_folder(photos)


def base_of(base: Place | None, deltas: Sequence[str]) -> str:
    """The base model: the one given, else what the first delta names, else `embedded`."""
    if base is not None:
        return text_of(base)
    return (read_header(local_copy("delta", deltas[0])).get("base") if deltas else None) or EMBEDDED


def results_folder(stage: str, fingerprint: str) -> Path:
    """Where a result without a folder of its own goes: the same call finds it there again."""
    return cache_folder() / "results" / f"{stage}-{fingerprint[:KEPT_LETTERS]}"


def photos_folder(photos: Photos) -> str:
    """The folder of photos: the one given, or one in the cache that is named by the pictures' content.

    Raises InputError for a file that is not there, ConfigError for what is no picture.
    """
    if isinstance(photos, str | os.PathLike):
        return text_of(photos)
    if not isinstance(photos, Iterable):
        raise ConfigError(f"{type(photos).__name__} is no list of photos.", hint="Give [picture, picture, …].")
    if isinstance(photos, Mapping):
        raise ConfigError("A mapping is no list of photos.", hint="Give [picture, picture, …].")
    files = [file for place, photo in enumerate(photos) for file in _files(place, photo)]
    if not files:
        raise ConfigError("There are no photos in the list.", hint="Give [picture, picture, …].")
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{name} {len(content)} ".encode() + content)
    folder = cache_folder() / "photos" / digest.hexdigest()[:KEPT_LETTERS]
    if not folder.is_dir():
        with writing(folder), atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, content in files:
                (temporary / name).write_bytes(content)
    return str(folder)


def _files(place: int, photo: Photo) -> Sequence[tuple[str, bytes]]:
    """A photo's file, named by its place in the list, and its caption's where one lies beside it."""
    if not isinstance(photo, str | os.PathLike):
        return [(f"{place:03d}.png", _as_png(photo))]
    path = Path(photo)
    if not path.is_file():
        raise InputError(f"{path} is no file.", hint="A list of photos holds pictures or their files.")
    caption = path.with_suffix(".txt")
    files = [(path, path.suffix.lower()), *([(caption, ".txt")] if caption.is_file() and caption != path else [])]
    try:
        return [(f"{place:03d}{suffix}", file.read_bytes()) for file, suffix in files]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error


def _as_png(picture: Image.Image) -> bytes:
    from PIL import Image, ImageOps

    if not isinstance(picture, Image.Image):
        raise ConfigError(f"{type(picture).__name__} is no picture.", hint="Give PIL images, or paths of pictures.")
    # What a camera turned is upright in its file, too.
    upright = ImageOps.exif_transpose(picture)
    content = io.BytesIO()
    (upright if upright.mode in PNG_MODES else upright.convert("RGB")).save(content, format="PNG")
    return content.getvalue()
