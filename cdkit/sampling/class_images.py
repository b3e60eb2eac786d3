"""The class-images stage: a regularization set drawn by the base model, for concepts without real images.

Kumari et al. 2023, appendix C (table 3, "generated"): 200 images of "photo of a {category}", 50 steps of DDIM at
eta 1, guidance 6. Retrieved images keep what the model draws for the category nearer to real pictures.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cdkit.config import ModelConfig, did_you_mean, setting
from cdkit.datasets import Dataset
from cdkit.errors import ConfigError
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.pictures.layouts import LAYOUTS, write_layout
from cdkit.protocols import Context
from cdkit.retrieval.retrieve import BUILDING, CARD, CONTACT_SHEET
from cdkit.sampling.sample import Sample, SampleConfig, draw_missing
from cdkit.storage import Folder, write_text

if TYPE_CHECKING:
    from cdkit.pictures.regularization_set import SetRow

DRAWN = "drawn"
# Images whose pixels are all alike show nothing; a model that draws many more of them is broken.
MOST_ROUNDS = 3
PAPER_ETA, PAPER_STEPS, PAPER_GUIDANCE = 1.0, 50, 6.0
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


class ClassImagesConfig(ModelConfig):
    """Which images to draw, and with what."""

    prompts: list[str] = setting(
        help="What the images show: 'photo of a dog', or several prompts by turns.", argument=True, min_length=1
    )
    count: int = setting(200, "Images to draw.", ge=1)
    seed: int = setting(0, "The first image's seed; the others follow.", ge=0, le=2**62)
    steps: int = setting(PAPER_STEPS, "Denoising steps of DDIM.", ge=1, le=1000)
    eta: float = setting(PAPER_ETA, "Noise of DDIM: 0 is deterministic, 1 is DDPM's.", ge=0, le=1)
    guidance: float = setting(PAPER_GUIDANCE, "Classifier-free guidance scale.", ge=0)
    negative_prompt: str = setting("", "What the images should not show.")
    resolution: int | None = setting(None, "Side of the images in pixels [default: the base model's].", ge=8)
    also_write: list[str] = setting([], "Also write the set as diffusers, imagefolder or webdataset. Repeatable.")
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type; no is fp32.")
    batch_size: int = setting(8, "Images drawn at once; does not change them.", execution=True, ge=1)

    @model_validator(mode="after")
    def _check(self) -> ClassImagesConfig:
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("prompts: no prompt may be empty")
        for name in self.also_write:
            if name not in LAYOUTS:
                raise ValueError(f"also_write: there is no layout {name!r}{did_you_mean(name, LAYOUTS)}")
        return self

    def sampling(self) -> SampleConfig:
        """The same as the sample stage takes it."""
        shared = ("base", "steps", "eta", "guidance", "negative_prompt", "resolution", "precision", "batch_size")
        values = {name: getattr(self, name) for name in (*shared, "device")}
        return SampleConfig(prompts=self.prompts, scheduler="ddim", **values)


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
    from cdkit.pictures.decoding import is_blank, open_file
    from cdkit.pictures.hashing import perceptual_hash
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
