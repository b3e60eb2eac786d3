"""Parameter names and shapes of the real U-Nets, built without memory."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def empty_unet(family: str) -> Any:
    """The U-Net of `sd1`, `sd2` or `sdxl` on torch's meta device."""
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel

    settings = {
        "sd1": {"cross_attention_dim": 768},
        "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
        "sdxl": {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    }
    with init_empty_weights():
        return UNet2DConditionModel(**settings[family])


@cache
def cross_attention_shapes(family: str) -> dict[str, tuple[int, int]]:
    """`sd1` (32 matrices, text width 768), `sd2` (32, 1024) or `sdxl` (140, 2048)."""
    return {
        name: tuple(value.shape)
        for name, value in empty_unet(family).named_parameters()
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))
    }
