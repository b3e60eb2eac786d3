"""What is learned: the U-Net's error on noised latents, under a batch's prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cdkit.training.batches import Batch
from cdkit.training.conditioning import Conditioning
from cdkit.training.loss import add_noise, masked_error, wanted_prediction
from cdkit.weights.text_features import TextFeatures

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass
class Denoising:
    """A U-Net with its noise schedule. alphas_cumprod: (timesteps,) on the U-Net's device."""

    unet: Any
    conditioning: Conditioning
    alphas_cumprod: torch.Tensor
    prediction_type: str

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, conditioning: Conditioning, device: torch.device) -> Denoising:
        """With the noise schedule that the pipeline's own scheduler was made for."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        alphas_cumprod = scheduler.alphas_cumprod.to(device)
        return cls(pipeline.unet, conditioning, alphas_cumprod, scheduler.config.prediction_type)

    def losses(self, batch: Batch) -> torch.Tensor:
        """One loss per sample (n,), before weights; differentiable."""
        noisy = add_noise(batch.latents, batch.noise, batch.timesteps, self.alphas_cumprod)
        wanted = wanted_prediction(
            batch.latents, batch.noise, batch.timesteps, self.alphas_cumprod, self.prediction_type
        )
        features = self.conditioning.features(batch.prompts)
        prediction = self.unet(
            noisy.to(self.unet.conv_in.weight.dtype),
            batch.timesteps,
            encoder_hidden_states=features.hidden,
            added_cond_kwargs=_added_conditions(features, batch),
        ).sample
        return masked_error(prediction, wanted, batch.mask)


def _added_conditions(features: TextFeatures, batch: Batch) -> dict[str, torch.Tensor] | None:
    """SDXL's: the pooled text and the sizes (Podell et al. 2023, section 2.2)."""
    if features.pooled is None:
        return None
    return {"text_embeds": features.pooled, "time_ids": batch.sizes.float()}
