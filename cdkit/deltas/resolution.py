"""The sides of pictures that a pipeline can draw and be trained at, by what its own classes ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# diffusers' Stable Diffusion pipelines refuse sides that are no multiple of 8, whatever the autoencoder. Latents that
# the U-Net cannot halve evenly are no obstacle: it keeps the odd sizes and comes back to them.
PIPELINE_STEP = 8


def latent_factor(vae: Mapping[str, Any]) -> int:
    """Pixels per latent cell: an autoencoder halves between its blocks. Raises InputError for a broken config."""
    blocks = vae.get("block_out_channels")
    if not isinstance(blocks, list | tuple) or not blocks:
        raise InputError("The autoencoder's config.json has no block_out_channels.", hint="Copy the model again.")
    return int(2 ** (len(blocks) - 1))


def own_resolution(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """The side of the pictures that a model was made for; raises InputError for a broken config."""
    size = unet.get("sample_size")
    side = size[0] if isinstance(size, list | tuple) and size else size
    if not isinstance(side, int) or side < 1:
        raise InputError("The U-Net's config.json has no sample_size.", hint="Copy the model again.")
    return side * latent_factor(vae)


def checked_resolution(asked: int | None, own: int, factor: int) -> int:
    """The side to draw or train at: `asked`, or the model's own.

    factor: pixels per latent cell. Raises ConfigError for a side that the pipeline does not take.
    """
    step = math.lcm(PIPELINE_STEP, factor)
    side = own if asked is None else asked
    if side % step:
        raise ConfigError(
            f"The resolution {side} is no multiple of {step}, which this model's pictures must be.",
            hint=f"Use {max(1, round(side / step)) * step}; {own} is the model's own.",
        )
    return side


def pipeline_resolution(pipeline: DiffusionPipeline, asked: int | None) -> int:
    """`checked_resolution` of a loaded pipeline."""
    unet, vae = pipeline.unet.config, pipeline.vae.config
    return checked_resolution(asked, own_resolution(unet, vae), latent_factor(vae))
