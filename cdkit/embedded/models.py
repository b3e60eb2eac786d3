"""The embedded models: diffusers and transformers classes small enough for two CPU cores, and how they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.startup import import_clip, import_pipelines
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
TEXT_CONFIG: dict[str, Any] = {
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
VISION_CONFIG: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "projection_dim": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": PICTURE_SIZE,
    "patch_size": 4,
}
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

    return CLIPConfig(
        text_config=dict(TEXT_CONFIG),
        vision_config=dict(VISION_CONFIG),
        projection_dim=WIDTH,
        logit_scale_init_value=2.3,
    )


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


TEXT_MODEL, TOKEN_TABLE = "text_model.", "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class EmbeddedClip:
    """The small CLIP: model, tokenizer, and the default similarity threshold of its captions."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    threshold: float

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images of any size, cropped square and shrunk by averaging, to float (n, 3, 32, 32) in [-1, 1]."""
        return preprocess(images)


def preprocess(images: Sequence[Image.Image]) -> torch.Tensor:
    """Images of any size, cropped square and shrunk by averaging, to float (n, 3, 32, 32) in [-1, 1]."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    side = (PICTURE_SIZE, PICTURE_SIZE)
    small = [np.asarray(ImageOps.fit(image.convert("RGB"), side, Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


@lru_cache(maxsize=1)
def untrained_table() -> torch.Tensor:
    """The seed rule's token table, kept because building it takes a tenth of a second."""
    import torch

    return torch.from_numpy(seeded_rows(WIDTH))


def text_tensors(folder: Path = weight_files.FOLDER) -> dict[str, torch.Tensor]:
    """The text tower, its projection and the logit scale in fp32, by the names they have in a CLIPModel.

    Raises InputError when the weights file is missing or corrupt.
    """
    tensors = weight_files.read_tensors(weight_files.TEXT_ENCODER, folder)
    table = untrained_table().clone()
    table[tensors.pop("token_ids").long()] = tensors.pop("token_rows").float()
    return {name: tensor.float() for name, tensor in tensors.items()} | {TEXT_MODEL + TOKEN_TABLE: table}


def picture_tensors(folder: Path = weight_files.FOLDER) -> dict[str, torch.Tensor]:
    """The picture tower and its projection in fp32, by the names they have in a CLIPModel.

    Raises InputError when the weights file is missing or corrupt.
    """
    tensors = weight_files.read_tensors(weight_files.PICTURE_ENCODER, folder)
    return {name: tensor.float() for name, tensor in tensors.items()}


def _unfilled() -> AbstractContextManager[None]:
    """Inside, models are built without drawing random numbers, which takes longer than reading the real ones."""
    from transformers.initialization import no_init_weights

    return no_init_weights()  # type: ignore[no-any-return]


def _fill(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives a model all of its weights, in fp32."""
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)


def load_clip(folder: Path = weight_files.FOLDER) -> EmbeddedClip:
    """The embedded CLIP; raises InputError when a weights file is missing or corrupt."""
    import_clip()
    with _unfilled():
        model = build_clip()
    _fill(model, text_tensors(folder) | picture_tensors(folder))
    model.eval().requires_grad_(False)
    return EmbeddedClip(model, load_tokenizer(), weight_files.default_threshold(folder))


def load_pipeline(folder: Path = weight_files.FOLDER) -> StableDiffusionPipeline:
    """The embedded text-to-image pipeline, fp32 on the CPU; raises InputError for missing or corrupt weights."""
    import_pipelines()
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    with _unfilled():
        text_encoder = CLIPTextModel(clip_config().text_config)
        unet, autoencoder = build_unet(), build_autoencoder()
    tower = {name: tensor for name, tensor in text_tensors(folder).items() if name.startswith(TEXT_MODEL)}
    _fill(text_encoder, {name.removeprefix(TEXT_MODEL): tensor for name, tensor in tower.items()})
    _fill(unet, weight_files.read_tensors(weight_files.UNET, folder))
    _fill(autoencoder, weight_files.read_tensors(weight_files.AUTOENCODER, folder))
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
