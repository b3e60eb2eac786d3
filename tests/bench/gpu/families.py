"""Training steps at the shapes of Stable Diffusion 3.5 medium and FLUX.1, with random weights in bf16 at 1024 px.

The transformer alone: text features and latents are made up, as they would come from encoders that run ahead.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

from cdkit.deltas.families.table import family_named
from cdkit.deltas.methods import METHODS, selected_names
from cdkit.deltas.text_features import TextFeatures
from cdkit.training.loss import interpolate, masked_error, wanted_flow
from cdkit.training.trainables import Trainables, select_weights

STEPS, WARM = 20, 2
CELLS, BATCH = 128, 4
SD35_MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (16, 56, 56),
}
TINY: dict[str, Any] = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 1, "joint_attention_dim": 16}
SMALL = {
    "StableDiffusion3Pipeline": {**SD35_MEDIUM, **TINY, "caption_projection_dim": 16, "dual_attention_layers": (0,)},
    "FluxPipeline": {**FLUX, **TINY, "num_single_layers": 1, "axes_dims_rope": (4, 4, 8)},
}
SHAPES = {"StableDiffusion3Pipeline": SD35_MEDIUM, "FluxPipeline": FLUX}


def measure(*, tiny: bool, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Seconds and peak memory of each family's step, with blocks run again for the gradient where they must be."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = time.monotonic() + seconds
    for pipeline, settings in (SMALL if tiny else SHAPES).items():
        if time.monotonic() > ends:
            yield pipeline, {"skipped": "no time left"}
            continue
        yield pipeline, _steps(pipeline, settings, device, 1 if tiny else STEPS, 8 if tiny else CELLS)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _steps(pipeline: str, settings: dict[str, Any], device: torch.device, steps: int, cells: int) -> dict[str, Any]:
    import diffusers

    family = family_named(pipeline, pipeline)
    with device:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            denoiser = getattr(diffusers, family.denoiser_class).from_config(settings)
        finally:
            torch.set_default_dtype(before)
    names = selected_names(denoiser, METHODS["custom-diffusion"])
    weights, base = select_weights(denoiser, names, device=device, dtype=torch.bfloat16)
    denoiser.enable_gradient_checkpointing()
    optimizer = Trainables(weights, base, {}).optimizer(1e-5, 1e-5, 0.0)
    with device:
        example = family.example_text(settings, min(max(family.context.values()), 16 if cells < CELLS else 512))
        hidden = torch.randn(example.hidden.shape).repeat(BATCH, 1, 1)
        pooled = None if example.pooled is None else torch.randn(BATCH, example.pooled.shape[-1])
        channels = family.taken_channels(settings)
        latents, noise = (torch.randn(BATCH, channels, cells, cells) for _ in range(2))
        share, mask, sizes = torch.rand(BATCH), torch.ones(BATCH, 1, cells, cells), torch.zeros(BATCH, 6)

    def step() -> None:
        noisy = interpolate(latents, noise, share).bfloat16()
        predicted = family.predict(denoiser, noisy, share, TextFeatures(hidden, pooled), sizes)
        masked_error(predicted, wanted_flow(latents, noise), mask).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(WARM):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    clock = time.perf_counter()
    for _ in range(steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    spent = time.perf_counter() - clock
    return {
        "steps": steps,
        "batch": BATCH,
        "seconds": round(spent, 2),
        "seconds_per_step": round(spent / steps, 4),
        "parameters": sum(parameter.numel() for parameter in denoiser.parameters()),
        "trained": sum(weight.numel() for weight in weights.values()),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 2) if device.type == "cuda" else None,
    }
