"""Deltas without training: known changes of a pipeline's keys and values, and tokens with known rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cdkit.deltas.base_model import base_hash, cross_attention_names
from cdkit.deltas.delta import Delta, ModifierToken
from cdkit.deltas.text_features import text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def made_delta(
    pipeline: DiffusionPipeline,
    *,
    seed: int = 0,
    tokens: Sequence[str] = ("<new1>",),
    category: str = "cat",
    rows: int = 1,
    size: float = 0.3,
    rank: int | None = None,
) -> Delta:
    """Random changes of `size` times each matrix's norm; of a low rank when one is given."""
    random = torch.Generator().manual_seed(seed)
    parameters = dict(pipeline.unet.named_parameters())
    changes = {}
    for name in cross_attention_names(pipeline.unet):
        weight = parameters[name].detach().float()
        change = torch.randn(weight.shape, generator=random)
        if rank is not None:
            down = torch.randn(rank, weight.shape[1], generator=random)
            change = torch.randn(weight.shape[0], rank, generator=random) @ down
        changes[name] = change * size * weight.norm() / change.norm()
    made = []
    for text in tokens:
        widths = {tower.name: tower.model.get_input_embeddings().weight for tower in text_towers(pipeline)}
        vectors = {
            name: torch.randn(rows, table.shape[1], generator=random) * table.detach().float().std()
            for name, table in widths.items()
        }
        made.append(ModifierToken(text, "ktn", vectors))
    words = [f"photo of a {text} {category}" for text in tokens] or [f"photo of a {category}"]
    return Delta(
        method="custom-diffusion",
        base="tiny",
        base_hash=base_hash(pipeline),
        changes=changes,
        tokens=tuple(made),
        prompts=tuple(words),
        settings={"concepts": {category: "photos"}, "steps": 7},
    )


@torch.no_grad()
def unet_output(pipeline: DiffusionPipeline, prompt: str = "photo of a cat") -> torch.Tensor:
    """The U-Net's output for fixed noise and the pipeline's own encoding of a prompt, fp32."""
    random = torch.Generator().manual_seed(5)
    channels, side = pipeline.unet.config.in_channels, pipeline.unet.config.sample_size
    noise = torch.randn(1, channels, side, side, generator=random)
    encoded = pipeline.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    options = {}
    if pipeline.unet.config.addition_embed_type == "text_time":
        times = torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]])
        options["added_cond_kwargs"] = {"text_embeds": encoded[2], "time_ids": times}
    dtype = pipeline.unet.dtype
    output: torch.Tensor = pipeline.unet(
        noise.to(dtype), 400, encoder_hidden_states=encoded[0].to(dtype), **options
    ).sample
    return output.float()
