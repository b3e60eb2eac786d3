"""Trains the U-Net on frozen text features and precomputed latents: v-prediction, dropout, weight averaging."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import distributed

from cdkit.core.errors import InputError
from cdkit.embedded.models import build_scheduler, build_unet
from cdkit.embedded.pretraining.autoencoder import finished_autoencoder
from cdkit.embedded.pretraining.clip import TEXT_PHASE, trained_clip
from cdkit.embedded.pretraining.scene_store import (
    Checkpoint,
    SceneStore,
    TrainingLog,
    learning_rate,
    set_learning_rate,
    step_generators,
    to_unit_range,
)
from cdkit.embedded.tokenizer import CONTEXT, END_ID, START_ID

UNET_PHASE = "unet.pt"


@dataclass(frozen=True)
class UnetTraining:
    """Length and batch (per process) of the U-Net phase; `average` is the decay of the weights that ship."""

    steps: int = 3100
    batch: int = 24
    rate: float = 1e-3
    caption_dropout: float = 0.1
    average: float = 0.999
    seed: int = 3
    every: int = 100


@dataclass(frozen=True)
class Latents:
    """Posterior mean and deviation per picture, float16 (n, 8, 8, 8) each."""

    mean: np.ndarray
    deviation: np.ndarray


def new_unet(seed: int) -> Any:
    """An untrained U-Net."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_unet().to(memory_format=torch.channels_last)


@torch.no_grad()
def encode_all(autoencoder: Any, pictures: np.ndarray, device: str) -> Latents:
    """The latents of all pictures."""
    means, deviations = [], []
    for start in range(0, len(pictures), 64):
        posterior = autoencoder.encode(to_unit_range(pictures[start : start + 64], device)).latent_dist
        means.append(posterior.mean.half().cpu().numpy())
        deviations.append(posterior.std.half().cpu().numpy())
    return Latents(np.concatenate(means), np.concatenate(deviations))


def cached_latents(work: Path, name: str, autoencoder: Any, pictures: np.ndarray, device: str) -> Latents:
    """`encode_all`, kept in the work folder."""
    path = work / f"latents-{name}.npz"
    if not path.is_file():
        latents = encode_all(autoencoder, pictures, device)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, mean=latents.mean, deviation=latents.deviation)
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as arrays:
        return Latents(arrays["mean"], arrays["deviation"])


def padded_tokens(tokens: np.ndarray) -> np.ndarray:
    """Token rows padded to the full context, as a pipeline pads them, int64 (n, 77)."""
    rows = np.full((len(tokens), CONTEXT), END_ID, dtype=np.int64)
    rows[:, : tokens.shape[1]] = tokens
    return rows


@torch.no_grad()
def text_features(clip: Any, tokens: np.ndarray, dropped: np.ndarray, device: str) -> torch.Tensor:
    """What the U-Net attends to, (n, 77, 128); a dropped caption becomes the empty one."""
    rows = padded_tokens(tokens)
    rows[dropped] = [START_ID] + [END_ID] * (CONTEXT - 1)
    features: torch.Tensor = clip.text_model(input_ids=torch.from_numpy(rows).to(device)).last_hidden_state
    return features


@dataclass(frozen=True)
class Denoising:
    """Signal and noise shares per time step, (1000,) each."""

    signal: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def of_schedule(cls, device: str) -> Denoising:
        """From the sampling schedule, so the two cannot part."""
        kept = build_scheduler().alphas_cumprod.to(device)
        return cls(kept.sqrt(), (1 - kept).sqrt())

    def loss(
        self, unet: Any, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of the predicted velocity."""
        signal, strength = self.signal[times][:, None, None, None], self.noise[times][:, None, None, None]
        noisy = (signal * latents + strength * noise).contiguous(memory_format=torch.channels_last)
        velocity = signal * noise - strength * latents
        return F.mse_loss(unet(noisy, times, text).sample, velocity)


@dataclass(frozen=True)
class Team:
    """The processes that train together, as `torchrun --nproc-per-node N -m cdkit.embedded.pretraining` starts them.

    On shared cores, one thread in each of two processes waits less for the other than two threads in one process do.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_environment(cls) -> Team:
        """One process, or what torchrun says."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(int(os.environ.get("RANK", "0")), size)

    def average_gradients(self, model: Any) -> None:
        """The mean gradient over all processes, in place, sent as one vector."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.div_(self.size).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def update_average(average: Any, model: Any, decay: float) -> None:
    """Moves the averaged weights towards the current ones."""
    with torch.no_grad():
        kept, new = list(average.parameters()), list(model.parameters())
        torch._foreach_lerp_(kept, new, 1 - decay)


@torch.no_grad()
def validation_loss(unet: Any, denoising: Denoising, latents: Latents, text: torch.Tensor) -> float:
    """The loss at fixed times and noise: comparable between steps and runs."""
    device = text.device
    noise_source = torch.Generator(device="cpu").manual_seed(0)
    mean = torch.from_numpy(latents.mean[: len(text)]).float().to(device)
    noise = torch.randn(mean.shape, generator=noise_source).to(device)
    times = torch.linspace(10, 990, len(text)).long().to(device)
    return float(denoising.loss(unet, mean, noise, times, text))


def train_unet(
    store: SceneStore,
    held_out: SceneStore,
    plan: UnetTraining,
    work: Path,
    log: TrainingLog,
    device: str,
) -> Any:
    """Trains, or goes on from the checkpoint in the work folder; returns the averaged weights' U-Net."""
    clip = trained_clip(work, TEXT_PHASE, device).clip
    autoencoder = finished_autoencoder(store, work, device)
    latents = cached_latents(work, "training", autoencoder, store.pictures, device)
    checked = cached_latents(work, "held-out", autoencoder, held_out.pictures, device)
    checked_text = text_features(clip, held_out.tokens[:256, 0], np.zeros(min(256, len(held_out)), bool), device)
    unet = new_unet(plan.seed).to(device)
    average = new_unet(plan.seed).to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=plan.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    team = Team.of_environment()
    denoising, checkpoint, start = Denoising.of_schedule(device), Checkpoint(work / UNET_PHASE), 0
    if (state := checkpoint.load(device)) is not None:
        unet.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = int(state["step"])
    for step in range(start, plan.steps):
        rng, noise_source = step_generators(plan.seed + 1000 * team.rank, step, device)
        set_learning_rate(optimizer, learning_rate(step, plan.steps, plan.rate))
        batch, text = unet_batch(store, latents, clip, plan, rng, noise_source, device)
        noise = torch.randn(batch.shape, generator=noise_source, device=device)
        times = torch.randint(0, len(denoising.signal), (len(batch),), generator=noise_source, device=device)
        loss = denoising.loss(unet, batch, noise, times, text)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients(unet)
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        update_average(average, unet, min(plan.average, (step + 1) / (step + 10)))
        if team.rank == 0 and ((step + 1) % plan.every == 0 or step + 1 == plan.steps):
            checked_loss = validation_loss(average, denoising, checked, checked_text)
            log.write("unet", step + 1, loss=float(loss.detach()), validation=checked_loss)
            models = {"model": unet.state_dict(), "average": average.state_dict()}
            checkpoint.save(models | {"optimizer": optimizer.state_dict(), "step": step + 1})
    return average.eval()


def unet_batch(
    store: SceneStore,
    latents: Latents,
    clip: Any,
    plan: UnetTraining,
    rng: np.random.Generator,
    noise_source: torch.Generator,
    device: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents drawn from the posterior, (b, 8, 8, 8), and the text features of one caption each."""
    rows = rng.integers(len(store), size=plan.batch)
    mean = torch.from_numpy(latents.mean[rows]).float().to(device)
    deviation = torch.from_numpy(latents.deviation[rows]).float().to(device)
    tokens = store.tokens[rows, rng.integers(store.tokens.shape[1], size=plan.batch)]
    text = text_features(clip, tokens, rng.random(plan.batch) < plan.caption_dropout, device)
    drawn = mean + deviation * torch.randn(mean.shape, generator=noise_source, device=device)
    return drawn, text


def trained_unet(work: Path, device: str) -> Any:
    """The averaged weights in the work folder; raises InputError when the part has not run."""
    state = Checkpoint(work / UNET_PHASE).load(device)
    if state is None:
        raise InputError(f"{work / UNET_PHASE}: no such checkpoint", hint="Run the part `unet` first.")
    unet = new_unet(0).to(device)
    unet.load_state_dict(state["average"])
    return unet.eval()
