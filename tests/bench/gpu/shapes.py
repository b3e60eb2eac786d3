"""Pipelines of Stable Diffusion's sizes with random weights, and tiny ones of the same classes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}


@dataclass(frozen=True)
class Shape:
    """A base model to train, and how. pipeline: makes it in fp32 on a device: drawing weights takes long on a CPU.

    regularization: how many images to encode first. steps: how many are timed.
    """

    pipeline: Callable[[torch.device], Any]
    regularization: int
    steps: int
    settings: dict[str, Any]


def _settings(resolution: int, batch_size: int, precision: str = "bf16") -> dict[str, Any]:
    return {
        "preset": "paper",
        "resolution": resolution,
        "batch_size": batch_size,
        "precision": precision,
        "token": {"star": "<new1>=cat"},
    }


def sd15() -> Shape:
    """Stable Diffusion 1.5: 512 px, batch 8."""
    return Shape(sd15_pipeline, 200, 100, _settings(512, 8))


def sdxl() -> Shape:
    """Stable Diffusion XL: 1024 px, batch 4."""
    return Shape(sdxl_pipeline, 200, 12, _settings(1024, 4) | {"regularization_count": 16})


def tiny_sd() -> Shape:
    """A tiny pipeline of the same classes."""
    return Shape(_tiny, 6, 2, _settings(32, 4, "no"))


def tiny_xl() -> Shape:
    """A tiny pipeline of XL's classes."""
    return Shape(_tiny_xl, 6, 2, _settings(32, 2, "no"))


def _tiny(device: torch.device) -> Any:
    from tests.support.tiny_pipeline import tiny_pipeline

    with tempfile.TemporaryDirectory() as folder:
        return tiny_pipeline(Path(folder))


def _tiny_xl(device: torch.device) -> Any:
    from tests.support.tiny_xl_pipeline import tiny_xl_pipeline

    with tempfile.TemporaryDirectory() as folder:
        return tiny_xl_pipeline(Path(folder))


def _autoencoder(**settings: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **settings,
    )


def _text_config(width: int, inner: int, layers: int, heads: int, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    from cdkit.embedded.tokenizer import END_ID, START_ID

    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        bos_token_id=START_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
        **more,
    )


def sd15_pipeline(device: torch.device) -> Any:
    """Stable Diffusion 1.5's classes and sizes."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    from cdkit.embedded.tokenizer import load_tokenizer

    with device:
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
        vae, text = _autoencoder(sample_size=512), CLIPTextModel(_text_config(768, 3072, 12, 12))
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=load_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl_pipeline(device: torch.device) -> Any:
    """Stable Diffusion XL's classes and sizes, in the same way."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    from cdkit.embedded.tokenizer import load_tokenizer

    with device:
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            cross_attention_dim=2048,
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        )
        vae = _autoencoder(sample_size=1024, force_upcast=True)
        text = CLIPTextModel(_text_config(768, 3072, 12, 12))
        second = CLIPTextModelWithProjection(_text_config(1280, 5120, 32, 20, projection_dim=1280, hidden_act="gelu"))
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text,
        text_encoder_2=second,
        tokenizer=load_tokenizer(),
        tokenizer_2=load_tokenizer(),
        unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        add_watermarker=False,
    )
