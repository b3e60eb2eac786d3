"""The retrieve stage: prompts to a regularization set, by candidates, download (or images at hand) and curation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, ConfigError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, finished_facts, part_name
from cdkit.core.storage import Folder, atomic_path, write_text
from cdkit.pictures.layouts import LAYOUTS, write_layout
from cdkit.retrieval.config import ClassImagesConfig, FilledRetrieveConfig, RetrieveConfig
from cdkit.retrieval.run import BUILDING, CARD, CONTACT_SHEET, REJECTS
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.drawing import Sample, draw_missing

if TYPE_CHECKING:
    from cdkit.pictures.regularization_set import SetRow
    from cdkit.retrieval.accept import ImageMaker


def retrieve(
    config: RetrieveConfig,
    inputs: Mapping[str, Input],
    out: Folder,
    context: Context,
    *,
    make: ImageMaker | None = None,
) -> Dataset:
    """Find `count` images, or as many as there are; killed at any moment, the same call gives the same set.

    make: draws what is missing then.
    Raises InputError when the pool has no URLs and no images are given, for a blocklist that cannot be read, and for
    photos to exclude that do not decode; NetworkError when nothing can be fetched; OutputError when the disk is full.
    """
    finished = finished_facts(out / REJECTS / part_name(0), context.fingerprint)
    clocks: dict[str, float] = {}
    if finished is None:
        from cdkit.retrieval.run import RetrievalRun

        try:
            finished, clocks = RetrievalRun(config, out, context, make).run()
        except CdkitError:
            # What failed before an image was there must not stand in the way of the mended command.
            if not any(path.is_file() for path in (out / BUILDING).glob("*/*") if path.parent.name != "candidates"):
                out.remove([BUILDING])
            raise
    out.remove([BUILDING])
    details = finished["details"] | {"clocks": clocks}
    decided = details["accepted"] + sum(details["rejected"].values())
    counts = Counts(decided, details["accepted"], details["rejected"])
    return Dataset("regularization_set", out.path, counts, details, finished["shortfall"])


DRAWN = "drawn"
# Images whose pixels are all alike show nothing; a model that draws many more of them is broken.
MOST_ROUNDS = 3
_CARD = """\
---
configs:
  - config_name: default
    data_files: images/*.parquet
---
# Class images: {prompts}

{number:,} images that {base} drew for the prompts, with the prompt as caption and `generated` as source.
`contact_sheet.png` shows them. Made by `cdkit class-images`.
"""


@dataclass
class ClassImageDrawer:
    """Draws the base model's images of prompts into a folder; what is there already is not drawn again."""

    config: SampleConfig
    first_seed: int
    folder: Path
    context: Context

    def draw(self, numbers: range) -> list[tuple[Path, str]]:
        """The images with these numbers and their prompts: prompts take turns, each number has a seed of its own."""
        prompts = self.config.prompts
        wanted = [
            Sample(prompts[number % len(prompts)], self.first_seed + number, f"{number:06d}.png") for number in numbers
        ]
        missing = [entry for entry in wanted if not (self.folder / entry.name).exists()]
        if missing:
            draw_missing(self.config, prompts, missing, self.folder, self.context)
        return [(self.folder / entry.name, entry.prompt) for entry in wanted]


def class_images(config: ClassImagesConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Draw `count` images into a regularization set; killed, the same call draws what is missing.

    Raises ConfigError when the model draws nothing but blank images.
    """
    from cdkit.pictures.grid import write_contact_sheet
    from cdkit.pictures.regularization_set import write_images

    drawn = out.sub(BUILDING).sub(DRAWN).path
    drawer = ClassImageDrawer(config.sampling(), config.seed, drawn, context)
    rows, rejected = _rows(config, drawer)
    out.remove(["images"])
    write_images(out, rows, context.fingerprint)
    named = ", ".join(config.prompts)
    write_contact_sheet(out / CONTACT_SHEET, rows, f"{len(rows)} images drawn by {config.base}: {named}")
    write_text(out / CARD, _CARD.format(prompts=" ".join(named.split()), number=len(rows), base=config.base))
    for layout in LAYOUTS:
        if layout in config.also_write:
            write_layout(layout, out, rows)
    out.remove([BUILDING])
    details: dict[str, Any] = {
        "asked": config.count,
        "accepted": len(rows),
        "generated": len(rows),
        "tried": len(rows) + sum(rejected.values()),
        "rejected": rejected,
        "prompts": config.prompts,
        "base": config.base,
        "steps": config.steps,
        "guidance": config.guidance,
    }
    counts = Counts(details["tried"], len(rows), rejected)
    return Dataset("regularization_set", out.path, counts, details)


def _rows(config: ClassImagesConfig, drawer: ClassImageDrawer) -> tuple[list[SetRow], dict[str, int]]:
    """The rows of a set in the order drawn, blank images left out and replaced by further ones."""
    rows: list[SetRow] = []
    tried = 0
    for _ in range(MOST_ROUNDS):
        drawn = drawer.draw(range(tried, tried + config.count - len(rows)))
        tried += len(drawn)
        rows += _inspected(drawn, len(rows))
        if len(rows) == config.count:
            blank = Counter({"blank": tried - len(rows)})
            return rows, dict(+blank)
    raise ConfigError(
        f"{tried - len(rows)} of {tried} images that {config.base} drew are blank.",
        hint="Look at what cdkit sample draws; fp16 overflows in some models: try --precision no or bf16.",
    )


def _inspected(drawn: Sequence[tuple[Path, str]], first: int) -> Iterator[SetRow]:
    from cdkit.pictures.decoding import is_blank
    from cdkit.pictures.hashing import perceptual_hash
    from cdkit.pictures.picture import open_file
    from cdkit.pictures.regularization_set import GENERATED, SetRow

    number = first
    for path, prompt in drawn:
        picture = open_file(path)
        if is_blank(picture):
            continue
        yield SetRow(
            key=f"{number:06d}",
            path=path,
            caption=prompt,
            similarity=1.0,
            url=None,
            width=picture.width,
            height=picture.height,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            phash=f"{perceptual_hash(picture):016x}",
            source=GENERATED,
            query=prompt,
        )
        number += 1


ENLARGED = "enlarged"


def retrieve_and_fill(
    config: FilledRetrieveConfig, inputs: Mapping[str, Input], out: Folder, context: Context
) -> Dataset:
    """Retrieve, and where `fill` says so draw the rest: 50 DDIM steps at eta 1, guidance 6, prompts by turns."""
    if config.fill is None:
        return retrieve(config, inputs, out, context)
    from cdkit.pictures.picture import FileContent
    from cdkit.retrieval.accept import MadeImage

    drawing = ClassImagesConfig(
        prompts=config.prompts, base=config.base, precision=config.precision, device=config.device
    )

    def make(numbers: range) -> Sequence[MadeImage]:
        building = out.sub(BUILDING)
        drawer = ClassImageDrawer(drawing.sampling(), config.seed, building.sub(DRAWN).path, context)
        made = []
        for path, prompt in drawer.draw(numbers):
            content = FileContent(_large_enough(path, config.min_side, building.sub(ENLARGED).path))
            made.append(MadeImage(content, prompt))
        return made

    return retrieve(config, inputs, out, context, make=make)


def _large_enough(path: Path, least: int, folder: Path) -> Path:
    """The image's file, or a copy of it enlarged by a whole number to a side of at least `least` pixels.

    A drawn image has the size its model draws, which says nothing against it.
    """
    from PIL import Image

    from cdkit.pictures.picture import open_file

    picture = open_file(path)
    factor = -(-least // min(picture.size))
    if factor <= 1:
        return path
    target = folder / path.name
    with atomic_path(target) as temporary:
        size = (picture.width * factor, picture.height * factor)
        picture.resize(size, Image.Resampling.NEAREST).save(temporary, format="PNG")
    return target
