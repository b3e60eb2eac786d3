"""Noise schedules: how latents are noised at a timestep, and what the denoiser should say of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from cdkit.core.errors import InputError
from cdkit.deltas.families.family import Family
from cdkit.training.loss import add_noise, interpolate, wanted_flow, wanted_prediction

# A run draws its timesteps as numbers below this.
FLOW_STEPS = 1000
_AGAIN = "Copy or download the model's scheduler/ folder again."


@dataclass(frozen=True)
class Schedule:
    """A schedule of some number of timesteps on a device.

    table (timesteps,): the cumulated alphas of a diffusion, or the share of noise of a flow. prediction: `epsilon`,
    `v_prediction` or `flow`.
    """

    table: torch.Tensor
    prediction: str

    def noised(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents (n, C, h, w) at the timesteps (n,), and the prediction that is wanted of them."""
        if self.prediction == "flow":
            return interpolate(latents, noise, self.table[timesteps]), wanted_flow(latents, noise)
        noisy = add_noise(latents, noise, timesteps, self.table)
        return noisy, wanted_prediction(latents, noise, timesteps, self.table, self.prediction)

    def times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser is told of the timesteps: themselves, or the share of noise of a flow."""
        return self.table[timesteps] if self.prediction == "flow" else timesteps


def schedule_of(scheduler: Any, family: Family, cells: int, device: torch.device) -> Schedule:
    """The schedule that a pipeline's scheduler was made for. cells: latent cells per side that are trained at."""
    from diffusers import DDPMScheduler

    if family.flow:
        return Schedule(flow_table(flow_shift(scheduler.config, (cells // family.patch) ** 2)).to(device), "flow")
    diffusion = DDPMScheduler.from_config(scheduler.config)
    return Schedule(diffusion.alphas_cumprod.to(device), diffusion.config.prediction_type)


def flow_table(shift: float) -> torch.Tensor:
    """Shares of noise (1000,): the quantiles of the distribution that training draws from, in fp32.

    The logit of the share is standard normal (Esser et al. 2024, section 3.1), then the share is shifted towards
    noise: s u / (1 + (s - 1) u) (the same, section 5.3.2).
    """
    middles = (torch.arange(FLOW_STEPS, dtype=torch.float64) + 0.5) / FLOW_STEPS
    share: torch.Tensor = torch.special.ndtri(middles).sigmoid()
    return (shift * share / (1 + (shift - 1) * share)).float()


def flow_shift(config: Any, positions: int) -> float:
    """How far a scheduler's configuration shifts shares of noise, for pictures of so many positions.

    Where it says that this depends on the picture, the logarithm grows linearly between two numbers of positions.
    Raises InputError for a configuration that says nothing of the kind.
    """
    try:
        shift = _stated_shift(config, positions)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"scheduler_config.json: no shift of noise follows from it: {error}", hint=_AGAIN) from error
    if not 0 < shift < math.inf:
        raise InputError(f"scheduler_config.json: a shift of noise of {shift:g}.", hint=_AGAIN)
    return shift


def _stated_shift(config: Any, positions: int) -> float:
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (positions - least) / (most - least))
