"""The embedded models' shapes: diffusers and transformers classes, small enough for two CPU cores."""

from __future__ import annotations

from typing import Any

from cdkit.embedded.tokens import CONTEXT, END_ID, START_ID, VOCABULARY_SIZE

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
