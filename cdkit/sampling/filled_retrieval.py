"""The retrieve stage with `fill`: what was not found is drawn by a base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from cdkit.config import setting
from cdkit.datasets import Dataset
from cdkit.inputs import EMBEDDED, Input
from cdkit.protocols import Context
from cdkit.retrieval.retrieve import BUILDING, RetrieveConfig, retrieve
from cdkit.sampling.class_images import DRAWN, ClassImageDrawer, ClassImagesConfig
from cdkit.storage import Folder, atomic_path

ENLARGED = "enlarged"


class FilledRetrieveConfig(RetrieveConfig):
    """Which images to find, what they must be, and what stands in for those that are not found."""

    fill: Literal["generated"] | None = setting(
        None, "generated: the base model draws what was not found, marked as generated."
    )
    base: str | None = setting(
        None,
        "Base model that draws: 'embedded', a diffusers folder, or a hub id [default: embedded].",
        input="model",
    )
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type of the base model; no is fp32.")
    device: str | None = setting(
        None, "Device of the base model [default: the GPU when there is one].", execution=True
    )

    @model_validator(mode="before")
    @classmethod
    def _base(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("fill") and not values.get("base"):
            return {**values, "base": EMBEDDED}
        return values

    @model_validator(mode="after")
    def _something_to_draw(self) -> FilledRetrieveConfig:
        if self.base and not self.fill:
            raise ValueError("base is the model that draws what is missing; add fill (--fill generated)")
        return self


def retrieve_and_fill(
    config: FilledRetrieveConfig, inputs: Mapping[str, Input], out: Folder, context: Context
) -> Dataset:
    """Retrieve, and where `fill` says so draw the rest: 50 DDIM steps at eta 1, guidance 6, prompts by turns."""
    if config.fill is None:
        return retrieve(config, inputs, out, context)
    from cdkit.pictures.content import FileContent
    from cdkit.retrieval.fill import MadeImage

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

    from cdkit.pictures.decoding import open_file

    picture = open_file(path)
    factor = -(-least // min(picture.size))
    if factor <= 1:
        return path
    target = folder / path.name
    with atomic_path(target) as temporary:
        size = (picture.width * factor, picture.height * factor)
        picture.resize(size, Image.Resampling.NEAREST).save(temporary, format="PNG")
    return target
