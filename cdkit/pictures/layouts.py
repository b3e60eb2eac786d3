"""The same set as other programs read it: diffusers' Custom Diffusion script, ImageFolder, WebDataset, trainers.

diffusers (and Adobe's own script) read images/ for the number of images, images.txt for their paths and caption.txt
for their captions, line by line with `str.splitlines`, so that no caption may hold anything that ends a line.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import json_text
from cdkit.core.storage import Folder, atomic_path
from cdkit.core.text import one_line
from cdkit.pictures.captions import CAPTIONS_NAME, PATHS_NAME, URLS_NAME
from cdkit.pictures.regularization_set import SetRow
from cdkit.pictures.trained_concept import TrainedConcept
from cdkit.pictures.trainers import TRAINERS, Trainer, TrainerLayout, write_trainer

Layout = Literal["diffusers", "imagefolder", "webdataset"]
LAYOUTS: tuple[Layout, ...] = ("diffusers", "imagefolder", "webdataset")
ALL_LAYOUTS: tuple[str, ...] = (*LAYOUTS, *TRAINERS)
TAR_IMAGES = 1000


def write_layout(layout: Layout, out: Folder, rows: Sequence[SetRow]) -> None:
    """Write one layout of a set alone into a folder of its name, whole or not at all."""
    out.remove([layout])
    with atomic_path(out / layout) as temporary:
        temporary.mkdir()
        _WRITERS[layout](temporary, out / layout, rows)


def write_trainer_layout(
    trainer: Trainer, out: Folder, rows: Sequence[SetRow], concept: TrainedConcept
) -> TrainerLayout:
    """Write a trainer's layout of a set and a concept's photos into a folder of its name, whole or not at all."""
    out.remove([trainer])
    with atomic_path(out / trainer) as temporary:
        temporary.mkdir()
        return write_trainer(trainer, temporary, out / trainer, rows, concept)


def write_layouts(
    layouts: Sequence[str], out: Folder, rows: Sequence[SetRow], concept: TrainedConcept | None
) -> dict[str, TrainerLayout]:
    """Write the layouts asked for; returns what was written of trainers'. A set without images has none of these."""
    written: dict[str, TrainerLayout] = {}
    for layout in LAYOUTS:
        if layout in layouts:
            write_layout(layout, out, rows)
    for trainer in TRAINERS:
        if trainer in layouts and rows:
            if concept is None:
                raise ConfigError(f"{trainer} shows the set beside a concept's photos.", hint="Add --photos FOLDER.")
            written[trainer] = write_trainer_layout(trainer, out, rows, concept)
    return written


def _write_diffusers(folder: Path, final: Path, rows: Sequence[SetRow]) -> None:
    """images/, images.txt, caption.txt and urls.txt; paths are absolute, so that a script finds them from anywhere."""
    (folder / "images").mkdir()
    for row in rows:
        (folder / "images" / row.file_name).write_bytes(row.path.read_bytes())
    paths = [str(final.resolve() / "images" / row.file_name) for row in rows]
    _write_lines(folder / PATHS_NAME, paths)
    _write_lines(folder / CAPTIONS_NAME, [row.caption for row in rows])
    _write_lines(folder / URLS_NAME, [row.url or "" for row in rows])


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{one_line(line)}\n" for line in lines), encoding="utf-8", newline="\n")


def _write_imagefolder(folder: Path, final: Path, rows: Sequence[SetRow]) -> None:
    """Hugging Face's ImageFolder: the images, and metadata.jsonl that names them."""
    lines = []
    for row in rows:
        (folder / row.file_name).write_bytes(row.path.read_bytes())
        lines.append(json_text({"file_name": row.file_name, "text": row.caption} | _facts(row)))
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_webdataset(folder: Path, final: Path, rows: Sequence[SetRow]) -> None:
    """Tar files of KEY.jpg or KEY.png, KEY.txt and KEY.json, members of a key side by side.

    Readers take the fields of the first samples for those of all: a set of both kinds is written as PNG, with the
    same pixels.
    """
    mixed = len({row.path.suffix for row in rows}) > 1
    for number, start in enumerate(range(0, len(rows), TAR_IMAGES)):
        with tarfile.open(folder / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in rows[start : start + TAR_IMAGES]:
                facts = json_text({"key": row.key, "caption": row.caption} | _facts(row))
                name, content = (
                    (f"{row.key}.png", _as_png(row.path)) if mixed else (row.file_name, row.path.read_bytes())
                )
                _add(archive, name, content)
                _add(archive, f"{row.key}.txt", row.caption.encode())
                _add(archive, f"{row.key}.json", facts.encode())


def _as_png(path: Path) -> bytes:
    if path.suffix == ".png":
        return path.read_bytes()
    from cdkit.pictures.picture import open_file

    target = io.BytesIO()
    open_file(path).save(target, format="PNG")
    return target.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    # A TarInfo made by hand has no clock and no owner: the same set is the same bytes.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _facts(row: SetRow) -> dict[str, object]:
    names = ("similarity", "url", "width", "height", "sha256", "phash", "source", "query", "licence", "attribution")
    return {name: getattr(row, name) for name in names}


_WRITERS: Mapping[Layout, Callable[[Path, Path, Sequence[SetRow]], None]] = {
    "diffusers": _write_diffusers,
    "imagefolder": _write_imagefolder,
    "webdataset": _write_webdataset,
}
