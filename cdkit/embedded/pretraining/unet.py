"""Goes on training the U-Net on frozen text features and latents: v-prediction, caption dropout, a weight average."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cdkit.embedded import weight_files
from cdkit.embedded.models import build_scheduler, build_unet
from cdkit.embedded.pretraining.autoencoder import encoded
from cdkit.embedded.pretraining.clip import caption_features
from cdkit.embedded.pretraining.scenes import Scenes
from cdkit.embedded.pretraining.training import adamw, on_device
from cdkit.embedded.tokenizer import END_ID, START_ID


@dataclass(frozen=True)
class UnetTraining:
    """Batch, rate, and captions of a scene in use; `average` is the decay of the weights that ship."""

    batch: int = 512
    rate: float = 1e-3
    captions: int = 2
    caption_dropout: float = 0.1
    average: float = 0.9995


@dataclass(frozen=True)
class Noising:
    """Signal and noise shares per time step, (1000,) each, from the sampling schedule, so the two cannot part."""

    signal: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def on(cls, device: str) -> Noising:
        """On a device."""
        kept = build_scheduler().alphas_cumprod.to(device)
        return cls(kept.sqrt(), (1 - kept).sqrt())

    def loss(
        self, unet: Any, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, text: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error of the predicted velocity, computed in the U-Net's type."""
        signal, strength = self.signal[times][:, None, None, None], self.noise[times][:, None, None, None]
        noisy = (signal * latents + strength * noise).to(unet.dtype)
        velocity = signal * noise - strength * latents
        return F.mse_loss(unet(noisy, times, text.to(unet.dtype)).sample.float(), velocity)


@dataclass(frozen=True)
class LatentCaptions:
    """What the U-Net learns from: latents (n, 8, 8, 8) as mean and deviation, and text features (n, c, 77, 128)."""

    mean: torch.Tensor
    deviation: torch.Tensor
    text: torch.Tensor

    @classmethod
    def of(cls, scenes: Scenes, captions: int, clip: Any, autoencoder: Any, device: str) -> LatentCaptions:
        """Everything the frozen parts say, worked out once."""
        mean, deviation = encoded(autoencoder, on_device(scenes.pictures, device))
        tokens = on_device(scenes.tokens[:, :captions], device)
        features = caption_features(clip, tokens.flatten(0, 1))
        return cls(mean, deviation, features.unflatten(0, (len(scenes), -1)))


class UnetTrainee:
    """The U-Net, its average, and what it learns from."""

    graphed = True

    def __init__(
        self,
        training: LatentCaptions,
        held_out: LatentCaptions,
        clip: Any,
        plan: UnetTraining,
        folder: Path,
        device: str,
    ) -> None:
        self.plan, self.device = plan, device
        self.training, self.held_out = training, held_out
        tensors = {name: t.float() for name, t in weight_files.read_tensors(weight_files.UNET, folder).items()}
        self.unet, self.average = (self.filled(tensors, device) for _ in range(2))
        self.average.requires_grad_(False)
        # On a GPU a copy in bfloat16 computes: casting the weights once costs less than casting for every operation.
        self.worker = self.filled(tensors, device).bfloat16() if device.startswith("cuda") else self.unet
        self.noising = Noising.on(device)
        empty = torch.tensor([[START_ID, END_ID]], device=device)
        self.empty = caption_features(clip, empty)[0]
        self.optimizer = adamw(self.unet.parameters(), device, second=0.99, decay=0.01)

    @staticmethod
    def filled(tensors: dict[str, torch.Tensor], device: str) -> Any:
        """A U-Net of these weights."""
        unet = build_unet()
        unet.load_state_dict(tensors)
        # Group norms on a GPU turn this layout round and back.
        layout = torch.contiguous_format if device.startswith("cuda") else torch.channels_last
        return unet.to(device, memory_format=layout)

    def step(self) -> dict[str, torch.Tensor]:
        """Latents drawn from the posterior, one caption each, some of them dropped."""
        plan, count = self.plan, len(self.training.mean)
        rows = torch.randint(count, (plan.batch,), device=self.device)
        captions = torch.randint(self.training.text.shape[1], (plan.batch,), device=self.device)
        mean, deviation = self.training.mean[rows].float(), self.training.deviation[rows].float()
        dropped = torch.rand(plan.batch, 1, 1, device=self.device) < plan.caption_dropout
        text = torch.where(dropped, self.empty, self.training.text[rows, captions])
        latents = mean + deviation * torch.randn_like(mean)
        noise = torch.randn_like(mean)
        times = torch.randint(len(self.noising.signal), (plan.batch,), device=self.device)
        weights, working = list(self.unet.parameters()), list(self.worker.parameters())
        if self.worker is not self.unet:
            with torch.no_grad():
                torch._foreach_copy_(working, weights)
        loss = self.noising.loss(self.worker, latents, noise, times, text)
        for weight, gradient in zip(weights, torch.autograd.grad(loss, working), strict=True):
            weight.grad = gradient.to(weight.dtype)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.optimizer.step()
        return {"loss": loss.detach()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the averaged weights towards the current ones."""
        decay = min(self.plan.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.unet.parameters()), 1 - decay)

    def state(self) -> dict[str, Any]:
        """Both."""
        return {"model": self.unet.state_dict(), "average": self.average.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes both."""
        self.unet.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])

    @torch.no_grad()
    def checked(self) -> dict[str, float]:
        """The average's loss at fixed times and noise: comparable between steps and runs."""
        mean = self.held_out.mean.float()
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        times = torch.linspace(10, 990, len(mean)).long().to(self.device)
        loss = self.noising.loss(self.average, mean, noise, times, self.held_out.text[:, 0])
        return {"validation": float(loss)}
