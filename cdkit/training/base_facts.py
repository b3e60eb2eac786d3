"""What a base model is, read from its configuration files before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.storage import read_json
from cdkit.deltas.pipeline_folder import (
    check_channels,
    check_family,
    is_pipeline_folder,
    read_classes,
    read_tokenizer,
    tokenizer_name,
)
from cdkit.deltas.resolution import checked_resolution, latent_factor, own_resolution
from cdkit.deltas.text_features import TOWERS, text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class BaseFacts:
    """The resolution a base model was made for, its pixels per latent cell, its tokenizers by text encoder."""

    resolution: int
    factor: int
    tokenizers: Mapping[str, Any]

    def resolution_or(self, asked: int | None) -> int:
        """The resolution to train at; raises ConfigError for one that the model's pipeline does not take."""
        return checked_resolution(asked, self.resolution, self.factor)


def facts_of_files(base: str) -> BaseFacts | None:
    """The facts of `embedded` or of a pipeline's folder; None for a hub id, or for a folder that is no pipeline.

    Raises ConfigError for a pipeline of another family.
    """
    if base == EMBEDDED:
        from cdkit.embedded.models import LATENT_SIZE, PICTURE_SIZE
        from cdkit.embedded.tokenizer import load_tokenizer

        return BaseFacts(PICTURE_SIZE, PICTURE_SIZE // LATENT_SIZE, {TOWERS[0]: load_tokenizer()})
    folder = Path(base).expanduser()
    if not is_pipeline_folder(folder):
        return None
    classes = read_classes(folder, base)
    tokenizers = {tower: _tokenizer(folder, tower) for tower in TOWERS if tower in classes}
    return _facts(
        base, read_json(folder / "unet" / "config.json"), read_json(folder / "vae" / "config.json"), tokenizers
    )


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
    tokenizers = {tower.name: tower.tokenizer for tower in text_towers(pipeline)}
    return _facts(base, pipeline.unet.config, pipeline.vae.config, tokenizers)


def _facts(base: str, unet: Mapping[str, Any], vae: Mapping[str, Any], tokenizers: Mapping[str, Any]) -> BaseFacts:
    check_channels(base, unet, vae)
    return BaseFacts(own_resolution(unet, vae), latent_factor(vae), tokenizers)
