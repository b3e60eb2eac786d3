"""Real pictures to compare with: a folder of images, an embedded concept, a regularization set, or samples."""

from __future__ import annotations

from pathlib import Path

from cdkit.datasets import parts, read_parts
from cdkit.errors import InputError
from cdkit.evaluation.pictures import SUFFIXES, Picture, picture_bytes, picture_file, picture_in_memory

EMBEDDED_PREFIX = "embedded:"
SAMPLES_NAME = "samples.parquet"


def read_pictures(source: str) -> list[Picture]:
    """The pictures of a folder, of `embedded:NAME`, or of a regularization set, in a stable order.

    Raises InputError when there is none.
    """
    if source.startswith(EMBEDDED_PREFIX):
        from cdkit.embedded import concept_photos

        photos = concept_photos(source.removeprefix(EMBEDDED_PREFIX))
        return [picture_in_memory(f"{source} photo {number}", photo) for number, photo in enumerate(photos, start=1)]
    folder = Path(source)
    if not folder.exists():
        raise InputError(f"{source} does not exist.", hint="Give a folder of images, or embedded:NAME.")
    if folder.is_file():
        return [picture_file(folder)]
    if parts(folder / "images") or parts(folder):
        found = _regularization_set(folder)
    else:
        # The grid that cdkit sample writes beside its images is no reference.
        found = _files(folder / "images" if (folder / SAMPLES_NAME).exists() else folder)
    if not found:
        raise InputError(
            f"{source} holds no image.", hint=f"Files that end in {', '.join(sorted(SUFFIXES))} count as images."
        )
    return found


def _files(folder: Path) -> list[Picture]:
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return [picture_file(path) for path in paths]


def _regularization_set(folder: Path) -> list[Picture]:
    shards = folder / "images" if parts(folder / "images") else folder
    found = []
    for table in read_parts(shards, columns=["key", "image"]):
        for row in table.to_pylist():
            found.append(picture_bytes(f"{shards}, image {row['key']}", row["image"]["bytes"]))
    return found
