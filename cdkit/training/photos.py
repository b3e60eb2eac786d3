"""Pictures to train on: photos of a concept, and regularization images, checked and cut to squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from cdkit.core.errors import InputError
from cdkit.core.manifest import read_manifest
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import PictureFolder, read_pictures
from cdkit.training.config import BEST_NUMBER, LEAST_PHOTOS

if TYPE_CHECKING:
    from cdkit.training.concepts import Concept

# Zooming in takes up to 1.4 times the resolution; more than twice of it is never seen.
KEPT_OVER_RESOLUTION = 2
Frame = tuple[int, int, int, int]


@dataclass(frozen=True)
class Square:
    """A picture's largest centred square, uint8 (3, s, s).

    frame: height and width of the picture as it was; top and left of the square in its own pixels (SDXL's crop is
    counted after resizing, Podell et al. 2023, section 2.2).
    """

    pixels: torch.Tensor
    frame: Frame


def concept_photos(source: str) -> PictureFolder:
    """The photos of a concept in order of their names, with their captions.

    source: whatever `cdkit.pictures.reading` reads. Raises InputError when there are fewer than two photos.
    """
    folder = read_pictures(source).without_others()
    if len(folder.pictures) < LEAST_PHOTOS:
        number = "only one photo" if folder.pictures else "no photo"
        others = f"; these are no images: {shown(folder.left_out)}" if folder.left_out else ""
        raise InputError(
            f"{folder.source} holds {number}{others}.",
            hint=f"A concept needs at least {LEAST_PHOTOS} photos; {BEST_NUMBER} work best. Add some to it.",
        )
    return folder


def regularization_pictures(source: str) -> PictureFolder:
    """The images of a regularization set, or of any folder of images; a caption is None where there is none.

    Raises InputError when there are none.
    """
    folder = read_pictures(source).without_others()
    if not folder.pictures:
        manifest = read_manifest(Path(source)) if Path(source).is_dir() else None
        if manifest is not None and manifest.shortfall:
            raise InputError(
                f"The regularization set {folder.source} is empty: {manifest.shortfall}",
                hint="Make it again with other prompts or a lower threshold (--force), or train without it.",
            )
        raise InputError(f"{folder.source} holds no regularization images.", hint="Make a set with cdkit retrieve.")
    return folder


def decode_photos(concept: Concept, photos: Sequence[Picture], resolution: int, *, enlarge: bool) -> list[Square]:
    """The photos' squares, at most twice the resolution large.

    Raises InputError that names every damaged photo, and every one whose shorter side is below the resolution unless
    `enlarge`.
    """
    squares, damaged, small = [], [], []
    for photo in photos:
        try:
            image = photo.open()
        except InputError as error:
            damaged.append(error)
            continue
        if min(image.size) < resolution and not enlarge:
            small.append(f"{photo.key} ({image.width} × {image.height})")
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
