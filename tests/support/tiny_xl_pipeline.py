"""A tiny SDXL pipeline of the real classes with random weights: two text towers, and pooled text for the U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.tiny_pipeline import tiny_tokenizer

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline


def tiny_xl_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """Build the pipeline and save it to `folder`: text widths 32 and 24, cross-attention width 56."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = tiny_tokenizer(folder / "tokenizer-source")
    second = tiny_tokenizer(folder / "tokenizer-source-2")
    second.pad_token = "!"

    def config(width: int) -> Any:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=37,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=77,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=[16, 32],
                latent_channels=4,
                norm_num_groups=8,
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
            ),
            text_encoder=CLIPTextModel(config(32)),
            text_encoder_2=CLIPTextModelWithProjection(config(24)),
            tokenizer=tokenizer,
            tokenizer_2=second,
            unet=UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                layers_per_block=1,
                cross_attention_dim=56,
                attention_head_dim=(2, 4),
                transformer_layers_per_block=(1, 2),
                use_linear_projection=True,
                norm_num_groups=8,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=16 + 6 * 8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            ),
            scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        )
    pipeline.save_pretrained(folder)
    return pipeline
