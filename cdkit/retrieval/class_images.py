"""Class images: what a base model draws for prompts, as a set of its own or in place of what was not found."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdkit.core.errors import ConfigError
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_caption
from cdkit.fetching.job import FetchedImage
from cdkit.pictures.picture import Content, FileContent, open_file, perceptual_hash, save_png
from cdkit.pictures.regularization_set import GENERATED, SetRow
from cdkit.retrieval.accept import Downloaded, Judge, Limits, select
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.config import ClassImagesConfig, RetrieveConfig
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.drawing import Sample, draw_missing

DRAWN, ENLARGED = "drawn", "enlarged"
# Images whose pixels are all alike show nothing; a model that draws many more of them is broken.
MOST_BLANK_ROUNDS = 3
# Some of what fills a set is turned down; a model whose every image is alike must not draw for ever.
MOST_FILL_ROUNDS = 4


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
        samples = [
            Sample(prompts[number % len(prompts)], self.first_seed + number, f"{number:06d}.png") for number in numbers
        ]
        missing = [entry for entry in samples if not (self.folder / entry.name).exists()]
        if missing:
            draw_missing(self.config, prompts, missing, self.folder, self.context)
        return [(self.folder / entry.name, entry.prompt) for entry in samples]


def drawn_rows(config: ClassImagesConfig, drawer: ClassImageDrawer) -> tuple[list[SetRow], dict[str, int]]:
    """The rows of a set in the order drawn, blank images left out and replaced by further ones."""
    rows: list[SetRow] = []
    tried = 0
    for _ in range(MOST_BLANK_ROUNDS):
        drawn = drawer.draw(range(tried, tried + config.count - len(rows)))
        tried += len(drawn)
        rows += _inspected_rows(drawn, len(rows))
        if len(rows) == config.count:
            blank = Counter({"blank": tried - len(rows)})
            return rows, dict(+blank)
    raise ConfigError(
        f"{tried - len(rows)} of {tried} images that {config.base} drew are blank.",
        hint="Look at what cdkit sample draws; fp16 overflows in some models: try --precision no or bf16.",
    )


def _inspected_rows(drawn: Sequence[tuple[Path, str]], first: int) -> Iterator[SetRow]:
    from cdkit.pictures.decoding import is_blank

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


# Draws the images with these numbers, always the same for a number, each with the prompt that is its caption.
DrawImages = Callable[[range], Sequence[tuple[Content, str]]]


def image_drawing(config: RetrieveConfig, building: Folder, context: Context) -> DrawImages:
    """What draws the images that a retrieval did not find: 50 DDIM steps at eta 1, guidance 6, prompts by turns."""
    drawing = ClassImagesConfig(
        prompts=config.prompts, base=config.base, precision=config.precision, device=config.device
    )

    def draw(numbers: range) -> Sequence[tuple[Content, str]]:
        drawer = ClassImageDrawer(drawing.sampling(), config.seed, building.sub(DRAWN).path, context)
        enlarged = building.sub(ENLARGED).path
        return [
            (FileContent(_large_enough(path, config.min_side, enlarged)), prompt)
            for path, prompt in drawer.draw(numbers)
        ]

    return draw


def fill(done: Downloaded, draw: DrawImages, *, wanted: int, judge: Judge) -> Downloaded:
    """Draw images until `wanted` are accepted, or until too many of them were turned down."""
    drawn: list[tuple[Content, str]] = []
    filled = done
    for _ in range(MOST_FILL_ROUNDS):
        missing = wanted - len(filled.accepted)
        if missing <= 0:
            break
        drawn += draw(range(len(drawn), len(drawn) + missing))
        filled = top_up(done, drawn, wanted=wanted, judge=judge)
    return filled


def top_up(done: Downloaded, drawn: Sequence[tuple[Content, str]], *, wanted: int, judge: Judge) -> Downloaded:
    """Add images of `drawn`, in their order, until `wanted` are accepted; their `source` is `generated`.

    They must pass the same curation, and be no near-duplicates of what was found. What was found stays.
    """
    candidates = [candidate for candidate, _ in done.accepted]
    images = {place: image for place, (_, image) in enumerate(done.accepted)}
    for content, prompt in drawn:
        images[len(candidates)] = FetchedImage(None, content)
        number = caption_id(clean_caption(prompt))
        candidates.append(Candidate(prompt, number, prompt, 1.0, None, source=GENERATED))
    # A prompt has many images; the limits per caption and host were kept before.
    both = select(candidates, images, limits=Limits(wanted, per_caption=wanted), judge=judge)
    return replace(
        done,
        accepted=both.accepted,
        turned_down=[*done.turned_down, *both.turned_down],
        exhausted=len(both.accepted) < wanted,
    )


def _large_enough(path: Path, least: int, folder: Path) -> Path:
    """The image's file, or a copy of it enlarged by a whole number to a side of at least `least` pixels.

    A drawn image has the size its model draws, which says nothing against it.
    """
    from PIL import Image

    picture = open_file(path)
    factor = -(-least // min(picture.size))
    if factor <= 1:
        return path
    size = (picture.width * factor, picture.height * factor)
    save_png(picture.resize(size, Image.Resampling.NEAREST), folder / path.name)
    return folder / path.name
