"""Pictures to train on: photos of a concept, and regularization images, from folders of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from cdkit.errors import InputError
from cdkit.inputs import EMBEDDED
from cdkit.retrieval.content import FileContent
from cdkit.retrieval.decoding import Undecodable, decode
from cdkit.retrieval.images import IMAGE_SUFFIXES
from cdkit.retrieval.regularization_set import IMAGES, iterate_regularization_set

if TYPE_CHECKING:
    from cdkit.training.concepts import Concept

# Formats that cameras write count as photos too, so that one that cannot be read is named and not passed over.
PHOTO_SUFFIXES = IMAGE_SUFFIXES | {".avif", ".jfif", ".heic", ".heif"}
LARGEST_SIDE = 16_384
LEAST_PHOTOS = 2
# Zooming in takes up to 1.4 times the resolution; more than twice of it is never seen.
KEPT_OVER_RESOLUTION = 2


@dataclass(frozen=True)
class Picture:
    """One picture: its name, its caption where it has one, and a function that decodes it (RGB, upright)."""

    name: str
    caption: str | None
    load: Callable[[], Image.Image]


@dataclass(frozen=True)
class Square:
    """A picture's largest centred square, uint8 (3, s, s).

    frame: height and width of the picture as it was; top and left of the square in its own pixels (SDXL's crop is
    counted after resizing, Podell et al. 2023, section 2.2).
    """

    pixels: torch.Tensor
    frame: tuple[int, int, int, int]


def concept_photos(folder: str) -> tuple[list[Picture], list[str]]:
    """The photos of a concept in order of their names, and the names of files there that are no images.

    folder: a folder of images with optional captions (`a.txt` beside `a.jpg`), a regularization set, or
    `embedded:NAME`. Raises InputError when there are fewer than two.
    """
    if folder.startswith(f"{EMBEDDED}:"):
        from cdkit.embedded import concept_photos as embedded_photos

        photos = embedded_photos(folder.removeprefix(f"{EMBEDDED}:"))
        return [Picture(f"photo {number}", None, photo.copy) for number, photo in enumerate(photos, 1)], []
    found, others = _pictures(Path(folder))
    if len(found) < LEAST_PHOTOS:
        number = "only one photo" if found else "no photo"
        seen = f"; these are no images: {', '.join(others[:5])}" if others else ""
        raise InputError(
            f"{folder} holds {number}{seen}.",
            hint="A concept needs at least 2 photos; 4 to 20 work best. Put them into the folder itself.",
        )
    return found, others


def regularization_pictures(folder: str) -> list[Picture]:
    """The images of a regularization set, or of any folder of images; a caption is None where there is none.

    Raises InputError when there are none.
    """
    found, _ = _pictures(Path(folder))
    if not found:
        raise InputError(f"{folder} holds no regularization images.", hint="Make a set with cdkit retrieve.")
    return found


def _pictures(folder: Path) -> tuple[list[Picture], list[str]]:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder.", hint="Give a folder of images.")
    if list((folder / IMAGES).glob("part-*.parquet")):
        return _stored(folder), []
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES]
    captions = {path.with_suffix(".txt") for path in images}
    others = [path.name for path in files if path not in captions and path not in images]
    return [_of_file(path) for path in images], others


def _of_file(path: Path) -> Picture:
    text = path.with_suffix(".txt")
    try:
        caption = " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text} cannot be read: {error}", hint="It must be a UTF-8 text file.") from error
    return Picture(path.name, caption or None, lambda: _decoded(FileContent(path).read(), str(path)))


def _stored(folder: Path) -> list[Picture]:
    return [
        Picture(f"{folder.name}/{row.key}", row.caption, partial(_decoded, row.image, f"{folder}: {row.key}"))
        for row in iterate_regularization_set(folder)
    ]


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        return decode(content, LARGEST_SIDE).picture
    except Undecodable as error:
        hint = "Replace or remove it."
        if name.lower().endswith((".heic", ".heif")):
            hint = "Convert it to JPEG or PNG first: HEIC needs a decoder that cdkit does not ship."
        raise InputError(f"{name} cannot be read as an image ({error}).", hint=hint) from error


def decode_photos(concept: Concept, photos: Sequence[Picture], resolution: int, *, enlarge: bool) -> list[Square]:
    """The photos' squares, at most twice the resolution large.

    Raises InputError that names every damaged photo, and every one whose shorter side is below the resolution unless
    `enlarge`.
    """
    squares, damaged, small = [], [], []
    for photo in photos:
        try:
            image = photo.load()
        except InputError as error:
            damaged.append(error)
            continue
        if min(image.size) < resolution and not enlarge:
            small.append(f"{photo.name} ({image.width} × {image.height})")
        squares.append(centre_square(image, KEPT_OVER_RESOLUTION * resolution, least=resolution))
    if damaged:
        raise InputError("\n".join(error.message for error in damaged), hint=damaged[0].hint)
    if small:
        raise InputError(
            f"{len(small)} of the {len(photos)} photos of {concept.name!r} are smaller than the resolution "
            f"of {resolution} pixels: {', '.join(small[:5])}{', …' if len(small) > 5 else ''}.",
            hint=f"Give larger photos, train at --resolution {resolution // 2}, or add --enlarge.",
        )
    return squares


def centre_square(image: Image.Image, largest: int, *, least: int) -> Square:
    """Cut the centred square out and bring its side between `least` and `largest`; the aspect ratio is kept."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    side = min(max(short, least), largest)
    square = image.crop((left, top, left + short, top + short))
    if side != short:
        square = square.resize((side, side), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square.convert("RGB"))).permute(2, 0, 1).contiguous()
    scale = side / short
    return Square(pixels, (image.height, image.width, round(top * scale), round(left * scale)))
