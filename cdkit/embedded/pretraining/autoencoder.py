"""Trains the autoencoder: 32 × 32 pictures to 8 × 8 latents of 8 channels, mean 0 and deviation 1 per channel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.core.errors import InputError
from cdkit.embedded.models import LATENT_CHANNELS, build_autoencoder
from cdkit.embedded.pretraining.scene_store import (
    Checkpoint,
    SceneStore,
    TrainingLog,
    learning_rate,
    set_learning_rate,
    step_generators,
    to_unit_range,
)

WHOLE_PHASE, DECODER_PHASE = "autoencoder.pt", "decoder.pt"


@dataclass(frozen=True)
class AutoencoderTraining:
    """Length and batch of an autoencoder phase: all of it, or (`decoder_only`) its second half, the latents staying.

    `divergence_weight` scales the mean KL term per latent.
    """

    steps: int = 3400
    batch: int = 16
    rate: float = 2e-3
    divergence_weight: float = 1e-4
    recoloured_share: float = 0.4
    decoder_only: bool = False
    seed: int = 2
    every: int = 100


def new_autoencoder(seed: int) -> Any:
    """An untrained autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_autoencoder()


def recoloured(pixels: torch.Tensor, share: float, noise: torch.Generator) -> torch.Tensor:
    """Some of the pictures with their colours mixed anew, so that colours of no training scene survive as well."""
    count = len(pixels)
    mixing = torch.randn(count, 3, 3, generator=noise, device=pixels.device) * 0.6
    shift = torch.randn(count, 3, 1, 1, generator=noise, device=pixels.device) * 0.3
    chosen = torch.rand(count, 1, 1, 1, generator=noise, device=pixels.device) < share
    mixed = (torch.einsum("nij,njhw->nihw", mixing, pixels) + shift).clamp(-1, 1)
    return torch.where(chosen, mixed, pixels)


def autoencoder_loss(
    model: Any, pixels: torch.Tensor, plan: AutoencoderTraining, noise: torch.Generator
) -> dict[str, torch.Tensor]:
    """Squared and absolute error, and a little divergence that keeps the latents smooth."""
    with torch.set_grad_enabled(not plan.decoder_only):
        posterior = model.encode(pixels).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise, device=pixels.device)
    error = model.decode(latents).sample - pixels
    square = error.square().mean()
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    total = square + 0.1 * error.abs().mean() + plan.divergence_weight * divergence
    return {"square": square, "divergence": divergence, "deviation": posterior.std.mean(), "total": total}


@torch.no_grad()
def reconstruction_quality(model: Any, pictures: np.ndarray, device: str) -> float:
    """Mean peak signal-to-noise ratio of round trips through the posterior's mean, in dB."""
    ratios = []
    for start in range(0, len(pictures), 64):
        pixels = to_unit_range(pictures[start : start + 64], device)
        decoded = model.decode(model.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - pixels) / 2).square().mean(dim=(1, 2, 3))
        ratios.append(-10 * torch.log10(error))
    return float(torch.cat(ratios).mean())


@torch.no_grad()
def standardise(model: Any, pictures: np.ndarray, device: str) -> None:
    """Folds the latents' mean and deviation per channel into the 1 × 1 convolutions around them, in place.

    A plain pipeline then sees latents of deviation 1 with scaling_factor 1.
    """
    means = torch.cat(
        [
            model.encode(to_unit_range(pictures[start : start + 64], device)).latent_dist.mean
            for start in range(0, len(pictures), 64)
        ]
    )
    centre, spread = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    after.bias.add_((after.weight[:, :, 0, 0] * centre).sum(1))
    after.weight.mul_(spread[None, :, None, None])
    before.bias[:LATENT_CHANNELS].sub_(centre).div_(spread)
    before.weight[:LATENT_CHANNELS].div_(spread[:, None, None, None])
    before.bias[LATENT_CHANNELS:].sub_(2 * spread.log())


def train_autoencoder(
    store: SceneStore, held_out: SceneStore, plan: AutoencoderTraining, work: Path, log: TrainingLog, device: str
) -> Any:
    """Trains one phase, or goes on from its checkpoint; the decoder phase starts from the first phase's."""
    model = (
        trained_autoencoder(work, WHOLE_PHASE, device) if plan.decoder_only else new_autoencoder(plan.seed).to(device)
    )
    trained = [model.decoder, model.post_quant_conv] if plan.decoder_only else [model]
    parameters = [parameter for module in trained for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01)
    checkpoint = Checkpoint(work / (DECODER_PHASE if plan.decoder_only else WHOLE_PHASE))
    start = 0
    if (state := checkpoint.load(device)) is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    name = "decoder" if plan.decoder_only else "autoencoder"
    for step in range(start, plan.steps):
        rng, noise = step_generators(plan.seed + 1000 * plan.decoder_only, step, device)
        pixels = to_unit_range(store.pictures[rng.integers(len(store), size=plan.batch)], device)
        set_learning_rate(optimizer, learning_rate(step, plan.steps, plan.rate))
        losses = autoencoder_loss(model, recoloured(pixels, plan.recoloured_share, noise), plan, noise)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            decibels = reconstruction_quality(model, held_out.pictures[:256], device)
            log.write(name, step + 1, psnr=decibels, **{k: float(v.detach()) for k, v in losses.items()})
            checkpoint.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    return model.eval()


def trained_autoencoder(work: Path, phase: str, device: str) -> Any:
    """What a phase left in the work folder, not standardised; raises InputError when it has not run."""
    state = Checkpoint(work / phase).load(device)
    if state is None:
        raise InputError(f"{work / phase}: no such checkpoint", hint="Run the part `autoencoder` first.")
    model = new_autoencoder(0).to(device)
    model.load_state_dict(state["model"])
    return model.eval()


def finished_autoencoder(store: SceneStore, work: Path, device: str) -> Any:
    """The latest phase's autoencoder with standardised latents, the same whatever the decoder learned since."""
    phase = DECODER_PHASE if (work / DECODER_PHASE).is_file() else WHOLE_PHASE
    model = trained_autoencoder(work, phase, device)
    standardise(model, store.pictures[:2048], device)
    return model
