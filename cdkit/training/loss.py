"""The denoising loss: pure tensors in, one value per sample out."""

from __future__ import annotations

import torch


def masked_error(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Σ(m·e²) / (C·Σm) per sample: (n, C, h, w) twice and a mask (n, 1, h, w) to (n,), in fp32.

    Dividing by the number of values that count, channels included, gives target samples (masked) and regularization
    samples (all ones) the same weight; without the C a masked sample would weigh C times more.
    """
    squared = (prediction.float() - target.float()).square()
    counted = mask.sum(dim=(1, 2, 3)) * prediction.shape[1]
    return (squared * mask).sum(dim=(1, 2, 3)) / counted


def add_noise(
    latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor
) -> torch.Tensor:
    """The forward process q(z_t | z_0) of Ho et al. 2020, equation 4; timesteps (n,) index alphas_cumprod."""
    signal, strength = _coefficients(timesteps, alphas_cumprod)
    return signal * latents + strength * noise


def wanted_prediction(
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    prediction_type: str,
) -> torch.Tensor:
    """What the U-Net should say: the noise, or the velocity of Salimans and Ho 2022, appendix D.

    Raises ValueError for another prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        signal, strength = _coefficients(timesteps, alphas_cumprod)
        return signal * noise - strength * latents
    raise ValueError(f"no loss for the prediction type {prediction_type!r}")


def interpolate(latents: torch.Tensor, noise: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """The straight path from latents to noise, (1 - s) z + s e, at shares of noise (n,) (Liu et al. 2022)."""
    share = share.view(-1, 1, 1, 1)
    return (1 - share) * latents + share * noise


def wanted_flow(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The velocity along that path: noise minus latents."""
    return noise - latents


def _coefficients(timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()
