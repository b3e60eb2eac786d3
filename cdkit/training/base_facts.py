"""What a base model is, read from its configuration files before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.storage import read_json
from cdkit.deltas.base_model import checked_resolution, load_base_model
from cdkit.deltas.families.family import Family
from cdkit.deltas.families.table import family_of, family_of_parts
from cdkit.deltas.pipeline_folder import check_channels, is_pipeline_folder, read_classes, read_tokenizer
from cdkit.deltas.text_features import text_towers, tokenizer_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class BaseFacts:
    """The family of a base model, the resolution it was made for, its tokenizers by text encoder.

    denoiser, vae: the configurations of its parts, as they stand in their config.json; texts: class and configuration
    of each text encoder, by its name. pipeline: the model itself, where only that tells what it is.
    """

    base: str
    family: Family
    resolution: int
    tokenizers: Mapping[str, Any]
    denoiser: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: Mapping[str, tuple[str, Mapping[str, Any]]]
    pipeline: DiffusionPipeline | None = None

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return self.family.factor(self.vae)

    def resolution_or(self, asked: int | None) -> int:
        """The resolution to train at; raises ConfigError for one that the model's pipeline does not take."""
        return checked_resolution(asked, self.resolution, self.family.step(self.vae))

    def load(self) -> DiffusionPipeline:
        """The model on the CPU, always in fp32: what trains starts from the exact weights."""
        return self.pipeline or load_base_model(self.base, device=torch.device("cpu"))


def read_base(base: str) -> BaseFacts:
    """The facts of a base model, from the files of a pipeline's folder where it is one, else by loading it.

    Raises ConfigError for a pipeline of another family, and what load_base_model raises.
    """
    folder = Path(base).expanduser()
    if is_pipeline_folder(folder):
        return _facts_of_folder(base, folder)
    return facts_of_pipeline(base, load_base_model(base, device=torch.device("cpu")))


def _facts_of_folder(base: str, folder: Path) -> BaseFacts:
    classes = read_classes(folder, base)
    family = family_of_parts(classes, base)
    present = [tower for tower in family.texts if tower in classes]
    tokenizers = {tower: _tokenizer(folder, family, tower) for tower in present}
    denoiser, vae = (read_json(folder / part / "config.json") for part in (family.denoiser, "vae"))
    texts = {tower: (classes[tower], read_json(folder / tower / "config.json")) for tower in present}
    return _facts(base, family, tokenizers, denoiser, vae, texts)


def _tokenizer(folder: Path, family: Family, tower: str) -> Any:
    """A text encoder's tokenizer; many a file does not say how long the text encoder's context is."""
    tokenizer = read_tokenizer(folder / tokenizer_name(tower), family, tower)
    context = read_json(folder / tower / "config.json").get("max_position_embeddings")
    if isinstance(context, int):
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return tokenizer


def facts_of_pipeline(base: str, pipeline: DiffusionPipeline) -> BaseFacts:
    """The facts of a loaded pipeline; raises ConfigError for one of another family."""
    family = family_of(pipeline)
    towers = text_towers(pipeline)
    tokenizers = {tower.name: tower.tokenizer for tower in towers}
    texts = {tower.name: (type(tower.model).__name__, tower.model.config.to_dict()) for tower in towers}
    denoiser = getattr(pipeline, family.denoiser)
    return _facts(base, family, tokenizers, dict(denoiser.config), dict(pipeline.vae.config), texts, pipeline)


def _facts(
    base: str,
    family: Family,
    tokenizers: Mapping[str, Any],
    denoiser: Mapping[str, Any],
    vae: Mapping[str, Any],
    texts: Mapping[str, tuple[str, Mapping[str, Any]]],
    pipeline: DiffusionPipeline | None = None,
) -> BaseFacts:
    check_channels(base, family, denoiser, vae)
    resolution = family.own_cells(denoiser) * family.factor(vae)
    return BaseFacts(base, family, resolution, tokenizers, denoiser, vae, texts, pipeline)
