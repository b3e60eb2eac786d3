"""What a base model is, read from its configuration files before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.storage import read_json
from cdkit.deltas.base_model import checked_resolution, latent_factor, load_base_model, own_resolution
from cdkit.deltas.pipeline_folder import (
    check_channels,
    check_family,
    is_pipeline_folder,
    read_classes,
    read_tokenizer,
)
from cdkit.deltas.text_features import TOWERS, text_towers, tokenizer_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class BaseFacts:
    """The resolution a base model was made for, its pixels per latent cell, its tokenizers by text encoder.

    unet, vae, texts: the configurations of its parts, as they stand in their config.json. pipeline: the model itself,
    where only that tells what it is.
    """

    base: str
    resolution: int
    factor: int
    tokenizers: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: Sequence[Mapping[str, Any]]
    pipeline: DiffusionPipeline | None = None

    def resolution_or(self, asked: int | None) -> int:
        """The resolution to train at; raises ConfigError for one that the model's pipeline does not take."""
        return checked_resolution(asked, self.resolution, self.factor)

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
    tokenizers = {tower: _tokenizer(folder, tower) for tower in TOWERS if tower in classes}
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    texts = [folder / tower / "config.json" for tower in TOWERS]
    return _facts(base, tokenizers, unet, vae, [read_json(path) for path in texts if path.is_file()])


def _tokenizer(folder: Path, tower: str) -> Any:
    """A text encoder's tokenizer; many a file does not say how long the text encoder's context is."""
    tokenizer = read_tokenizer(folder / tokenizer_name(tower))
    context = read_json(folder / tower / "config.json").get("max_position_embeddings")
    if isinstance(context, int):
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    return tokenizer


def facts_of_pipeline(base: str, pipeline: DiffusionPipeline) -> BaseFacts:
    """The facts of a loaded pipeline; raises ConfigError for one of another family."""
    check_family(
        base,
        {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None},
    )
    towers = text_towers(pipeline)
    tokenizers = {tower.name: tower.tokenizer for tower in towers}
    texts = [tower.model.config.to_dict() for tower in towers]
    return _facts(base, tokenizers, dict(pipeline.unet.config), dict(pipeline.vae.config), texts, pipeline)


def _facts(
    base: str,
    tokenizers: Mapping[str, Any],
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    texts: Sequence[Mapping[str, Any]],
    pipeline: DiffusionPipeline | None = None,
) -> BaseFacts:
    check_channels(base, unet, vae)
    return BaseFacts(base, own_resolution(unet, vae), latent_factor(vae), tokenizers, unet, vae, texts, pipeline)
