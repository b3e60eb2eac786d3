"""Tiny pipelines of the transformer families, of diffusers' and transformers' own classes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.tiny_pipeline import tiny_tokenizer

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WORDS = ("photo", "of", "a", "cat", "dog", "and", "the", "star", "very", "small", "far", "away", "large")
LETTERS = "abcdefghijklmnopqrstuvwxyz<>0123456789.,:;|_'()-\"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WIDTH, SPARE = 16, 64
# Keys and values read more dimensions than a merge of two concepts has words to keep.
MERGED = 64


def t5_tokenizer() -> Any:
    """A T5 tokenizer of whole words and letters."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -8.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def gemma_tokenizer() -> Any:
    """A Gemma tokenizer of letters, whose spaces are marks before words."""
    from transformers import GemmaTokenizer

    entries = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "▁",
        "\n",
        "▁c",
        "▁ca",
        "▁cat",
        "▁d",
        "▁do",
        "▁dog",
        *LETTERS,
    ]
    merges = [("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "d"), ("▁d", "o"), ("▁do", "g")]
    return GemmaTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, merges=merges)


def qwen_tokenizer() -> Any:
    """A Qwen tokenizer of bytes."""
    from transformers import Qwen2Tokenizer

    from cdkit.embedded.tokenizer import byte_letters

    entries = [
        *byte_letters(),
        "Ġc",
        "Ġca",
        "Ġcat",
        "Ġd",
        "Ġdo",
        "Ġdog",
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    return Qwen2Tokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=[("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t"), ("Ġ", "d"), ("Ġd", "o"), ("Ġdo", "g")],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )


def t5_encoder(tokenizer: Any) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer) + SPARE,
            d_model=WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def clip_encoder(tokenizer: Any, *, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection or 8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def autoencoder() -> Any:
    """A KL autoencoder that halves once."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 8],
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        shift_factor=0.05,
        scaling_factor=1.3,
    )


def sana(folder: Path) -> DiffusionPipeline:
    from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    tokenizer = gemma_tokenizer()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(
            Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=8192,
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        ),
        vae=AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=MERGED // 2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=MERGED // 2,
            cross_attention_dim=MERGED,
            caption_channels=WIDTH,
            sample_size=8,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart(folder: Path) -> DiffusionPipeline:
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    tokenizer = t5_tokenizer()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder(),
        transformer=PixArtTransformer2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=MERGED // 2,
            num_attention_heads=2,
            caption_channels=WIDTH,
            in_channels=4,
            cross_attention_dim=MERGED,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
        ),
        scheduler=DPMSolverMultistepScheduler(),
    )


def stable_diffusion_3(folder: Path) -> DiffusionPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, second, long = (
        tiny_tokenizer(folder / "first"),
        tiny_tokenizer(folder / "second"),
        t5_tokenizer(),
    )
    return StableDiffusion3Pipeline(
        tokenizer=tokenizer,
        tokenizer_2=second,
        tokenizer_3=long,
        text_encoder=clip_encoder(tokenizer, projection=8),
        text_encoder_2=clip_encoder(second, projection=8),
        text_encoder_3=t5_encoder(long),
        vae=autoencoder(),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_layers=4,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=16,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=16,
            out_channels=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(folder: Path) -> DiffusionPipeline:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    tokenizer, long = tiny_tokenizer(folder / "first"), t5_tokenizer()
    return FluxPipeline(
        tokenizer=tokenizer,
        tokenizer_2=long,
        text_encoder=clip_encoder(tokenizer),
        text_encoder_2=t5_encoder(long),
        vae=autoencoder(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=4,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def qwen_image(folder: Path) -> DiffusionPipeline:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = qwen_tokenizer()
    size = len(tokenizer) + SPARE
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size,
            "hidden_size": WIDTH,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "rope_theta": 1000000.0,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
        },
        vision_start_token_id=size - 1,
        vision_end_token_id=size - 2,
        vision_token_id=size - 3,
        image_token_id=size - 4,
        video_token_id=size - 5,
    )
    return QwenImagePipeline(
        tokenizer=tokenizer,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[True],
            latents_mean=[0.1] * 4,
            latents_std=[1.2] * 4,
        ),
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=4,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=WIDTH,
            guidance_embeds=False,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


BUILDERS = {
    "Sana": sana,
    "PixArt-Sigma": pixart,
    "Stable Diffusion 3 and 3.5": stable_diffusion_3,
    "FLUX.1": flux,
    "Qwen-Image": qwen_image,
}


def tiny_transformer(family: str, folder: Path) -> DiffusionPipeline:
    """Build a family's pipeline and save it to `folder`: 16 × 16 pixels fit it, captions of any length."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline: DiffusionPipeline = BUILDERS[family](folder.with_name(f"{folder.name} sources"))
        with torch.no_grad():
            for name, value in pipeline.transformer.named_parameters():
                # What is zero at first would draw the same for every prompt.
                if value.ndim > 1 and not value.any():
                    value.normal_(std=0.02)
                elif "proj_out" in name and value.ndim > 1:
                    value.normal_(std=0.2)
    pipeline.save_pretrained(folder)
    return pipeline
