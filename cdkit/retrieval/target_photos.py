"""The concept's own photos: what a regularization set must not hold."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import InputError
from cdkit.inputs import EMBEDDED
from cdkit.retrieval.content import FileContent
from cdkit.retrieval.duplicates import mirrored_hash, perceptual_hash
from cdkit.retrieval.images import IMAGE_SUFFIXES
from cdkit.retrieval.inspection import InspectionRules
from cdkit.retrieval.inspectors import Inspectors

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 5


def target_hashes(sources: Sequence[str]) -> tuple[int, ...]:
    """Perceptual hashes of the photos in folders or of `embedded:NAME` concepts, and of their mirror images.

    Raises InputError when a folder holds no image, or one that does not decode: it could not be kept out.
    """
    hashes: list[int] = []
    for source in sources:
        if source.startswith(f"{EMBEDDED}:"):
            from cdkit.embedded import concept_photos

            hashes += [value for photo in concept_photos(source) for value in _both(photo)]
        else:
            hashes += _folder_hashes(Path(source))
    return tuple(dict.fromkeys(hashes))


def _both(photo: Image.Image) -> tuple[int, int]:
    return perceptual_hash(photo), mirrored_hash(photo)


def _folder_hashes(folder: Path) -> list[int]:
    from PIL import Image

    photos = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not photos:
        raise InputError(f"{folder} holds no photos to exclude.", hint="Give the folder of the concept's own photos.")
    hashes, broken = [], []
    with tempfile.TemporaryDirectory(prefix="cdkit-photos-") as scratch:
        store = Path(scratch)
        with Inspectors(InspectionRules(), store, workers=1) as inspectors:
            for place, found in inspectors.inspect([FileContent(path) for path in photos]):
                if found.name:
                    with Image.open(store / found.name) as photo:
                        hashes += [found.phash, mirrored_hash(photo)]
                elif found.reason != "blank":
                    broken.append(f"{photos[place]} ({found.reason})")
    if broken:
        more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        raise InputError(
            f"{len(broken)} of the photos to exclude do not decode: {', '.join(sorted(broken)[:SHOWN])}{more}.",
            hint="Mend or remove them: a photo that cannot be read cannot be kept out.",
        )
    return hashes
