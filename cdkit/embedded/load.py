"""Loads the embedded models: a Stable Diffusion pipeline and the CLIP that shares its text tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.embedded import weight_files
from cdkit.embedded.architecture import (
    PICTURE_SIZE,
    WIDTH,
    build_autoencoder,
    build_clip,
    build_scheduler,
    build_unet,
)
from cdkit.embedded.tokens import load_tokenizer, seeded_rows

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPModel, CLIPTokenizer

TOKEN_TABLE = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class EmbeddedClip:
    """The small CLIP: model, tokenizer, and the default similarity threshold of its captions."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    threshold: float

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of any size, cropped square and shrunk by averaging, to float (n, 3, 32, 32) in [-1, 1]."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        side = (PICTURE_SIZE, PICTURE_SIZE)
        small = [np.asarray(ImageOps.fit(image.convert("RGB"), side, Image.Resampling.BOX)) for image in images]
        return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


@lru_cache(maxsize=1)
def untrained_table() -> torch.Tensor:
    """The seed rule's token table, kept because building it takes half a second."""
    import torch

    return torch.from_numpy(seeded_rows(WIDTH))


def load_text_tower(text_model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Fills a CLIPTextModel in place; returns the file's other tensors (projection, logit scale)."""
    tensors = weight_files.read_tensors(weight_files.TEXT_ENCODER, folder)
    table = untrained_table().clone()
    table[tensors.pop("token_ids").long()] = tensors.pop("token_rows").float()
    prefix = "text_model."
    tower = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    text_model.load_state_dict(tower | {TOKEN_TABLE: table})
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}


def load_clip(folder: Path = weight_files.FOLDER) -> EmbeddedClip:
    """The embedded CLIP; raises InputError when a weights file is missing or corrupt."""
    model = build_clip()
    rest = load_text_tower(model.text_model, folder) | weight_files.read_tensors(weight_files.PICTURE_ENCODER, folder)
    unknown = model.load_state_dict(rest, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"the weights name parameters the model has not: {unknown}")
    model.eval().requires_grad_(False)
    return EmbeddedClip(model, load_tokenizer(), weight_files.default_threshold(folder))


def load_pipeline(folder: Path = weight_files.FOLDER) -> StableDiffusionPipeline:
    """The embedded text-to-image pipeline, fp32 on the CPU; raises InputError for missing or corrupt weights."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    from cdkit.embedded.architecture import clip_config

    text_encoder = CLIPTextModel(clip_config().text_config)
    load_text_tower(text_encoder, folder)
    unet, autoencoder = build_unet(), build_autoencoder()
    unet.load_state_dict(weight_files.read_tensors(weight_files.UNET, folder))
    autoencoder.load_state_dict(weight_files.read_tensors(weight_files.AUTOENCODER, folder))
    for model in (text_encoder, unet, autoencoder):
        model.eval()
    pipeline: StableDiffusionPipeline = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(),
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline
