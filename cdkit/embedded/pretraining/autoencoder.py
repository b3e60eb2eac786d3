"""Goes on training the autoencoder: 32 × 32 pictures to 8 × 8 latents of 8 channels, deviation 1 per channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.embedded import weight_files
from cdkit.embedded.models import LATENT_CHANNELS, build_autoencoder
from cdkit.embedded.pretraining.scenes import Scenes
from cdkit.embedded.pretraining.training import adamw, on_device, to_unit_range


@dataclass(frozen=True)
class AutoencoderTraining:
    """Batch and rate; `divergence_weight` scales the mean KL term per latent."""

    batch: int = 256
    rate: float = 1.5e-3
    divergence_weight: float = 1e-4
    recoloured_share: float = 0.25


def packaged_autoencoder(folder: Path, device: str) -> Any:
    """The autoencoder of a weights folder, in fp32."""
    model = build_autoencoder()
    tensors = weight_files.read_tensors(weight_files.AUTOENCODER, folder)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.to(device)


def recoloured(pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Some of the pictures with their colours mixed anew, so that colours of no training scene survive as well."""
    count = len(pixels)
    mixing = torch.randn(count, 3, 3, device=pixels.device) * 0.6
    shift = torch.randn(count, 3, 1, 1, device=pixels.device) * 0.3
    chosen = torch.rand(count, 1, 1, 1, device=pixels.device) < share
    mixed = (torch.einsum("nij,njhw->nihw", mixing, pixels) + shift).clamp(-1, 1)
    return torch.where(chosen, mixed, pixels)


class AutoencoderTrainee:
    """The autoencoder and its pictures."""

    graphed = True

    def __init__(self, scenes: Scenes, held_out: Scenes, plan: AutoencoderTraining, folder: Path, device: str) -> None:
        self.plan = plan
        self.model = packaged_autoencoder(folder, device)
        self.pictures = on_device(scenes.pictures, device)
        self.held_out = held_out
        self.optimizer = adamw(self.model.parameters(), device, second=0.99, decay=0.01)

    def step(self) -> dict[str, torch.Tensor]:
        """Squared and absolute error, and a little divergence that keeps the latents smooth."""
        rows = torch.randint(len(self.pictures), (self.plan.batch,), device=self.pictures.device)
        pixels = recoloured(to_unit_range(self.pictures[rows]), self.plan.recoloured_share)
        posterior = self.model.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        error = self.model.decode(latents).sample - pixels
        square = error.square().mean()
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        self.optimizer.zero_grad(set_to_none=True)
        (square + 0.1 * error.abs().mean() + self.plan.divergence_weight * divergence).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {"square": square.detach(), "divergence": divergence.detach()}

    def after_step(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """The weights."""
        return {"model": self.model.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes them."""
        self.model.load_state_dict(state["model"])

    def checked(self) -> dict[str, float]:
        """Quality on held-out pictures."""
        return {"psnr": reconstruction_quality(self.model, self.held_out.pictures)}


@torch.no_grad()
def reconstruction_quality(model: Any, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of round trips through the posterior's mean, in dB."""
    ratios = []
    for start in range(0, len(pictures), 256):
        pixels = to_unit_range(on_device(pictures[start : start + 256], str(model.device)))
        decoded = model.decode(model.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - pixels) / 2).square().mean(dim=(1, 2, 3))
        ratios.append(-10 * torch.log10(error))
    return float(torch.cat(ratios).mean())


@torch.no_grad()
def encoded(model: Any, pictures: torch.Tensor, batch: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and deviation of pictures on the model's device, float16 (n, 8, 8, 8) each."""
    means, deviations = [], []
    for start in range(0, len(pictures), batch):
        posterior = model.encode(to_unit_range(pictures[start : start + batch])).latent_dist
        means.append(posterior.mean.half())
        deviations.append(posterior.std.half())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def standardise(model: Any, pictures: torch.Tensor) -> None:
    """Folds the latents' mean and deviation per channel into the 1 × 1 convolutions around them, in place.

    A plain pipeline then sees latents of deviation 1 with scaling_factor 1.
    """
    means = encoded(model, pictures)[0].float()
    centre, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    after.bias.add_((after.weight[:, :, 0, 0] * centre).sum(1))
    after.weight.mul_(spread[None, :, None, None])
    before.bias[:LATENT_CHANNELS].sub_(centre).div_(spread)
    before.weight[:LATENT_CHANNELS].div_(spread[:, None, None, None])
    before.bias[LATENT_CHANNELS:].sub_(2 * spread.log())
