"""The embedded models: diffusers and transformers classes small enough for two CPU cores, and how they are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.embedded import weight_files
from cdkit.embedded.tokenizer import CONTEXT, END_ID, START_ID, VOCABULARY_SIZE, load_tokenizer, seeded_rows

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPModel, CLIPTokenizer


WIDTH = 128
LATENT_CHANNELS = 8
LATENT_SIZE = 8
PICTURE_SIZE = 32
NOISE_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


def clip_config() -> Any:
    """Both CLIP towers, 128 wide, sharing a 128-dimensional embedding."""
    from transformers import CLIPConfig

    text = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": START_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "projection_dim": WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": PICTURE_SIZE,
        "patch_size": 4,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=2.3)


def build_clip() -> Any:
    """A CLIPModel with random weights."""
    from transformers import CLIPModel

    return CLIPModel(clip_config())


def build_autoencoder() -> Any:
    """An AutoencoderKL with random weights: 32 × 32 pictures to 8 channels of 8 × 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PICTURE_SIZE,
        scaling_factor=1.0,
    )


def build_unet() -> Any:
    """A UNet2DConditionModel with random weights: cross-attention at both levels and between them."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(96, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """The sampling schedule that matches training."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**NOISE_SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


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
