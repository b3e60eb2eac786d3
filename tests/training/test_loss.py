from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from cdkit.training.loss import add_noise, masked_error, wanted_prediction


def _tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_a_mask_of_ones_is_the_plain_mean(channels: int) -> None:
    prediction, target = _tensors(3, channels, 6, 6)
    found = masked_error(prediction, target, torch.ones(3, 1, 6, 6))
    torch.testing.assert_close(found, (prediction - target).square().mean(dim=(1, 2, 3)))


def test_only_valid_cells_count_and_their_number_does_not() -> None:
    prediction, target = _tensors(2, 4, 6, 6)
    mask = torch.zeros(2, 1, 6, 6)
    mask[0, :, 1:3, 2:5] = 1
    mask[1, :, 5, 5] = 1
    found = masked_error(prediction, target, mask)
    squared = (prediction - target).square()
    torch.testing.assert_close(found[0], squared[0, :, 1:3, 2:5].mean())
    torch.testing.assert_close(found[1], squared[1, :, 5, 5].mean())
    prediction[0, :, 0, 0] += 100
    torch.testing.assert_close(masked_error(prediction, target, mask), found)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_those_of_diffusers(kind: str) -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    latents, noise = _tensors(4, 4, 3, 3)
    times = torch.tensor([0, 1, 500, 999])
    alphas = scheduler.alphas_cumprod
    torch.testing.assert_close(add_noise(latents, noise, times, alphas), scheduler.add_noise(latents, noise, times))
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, times)
    torch.testing.assert_close(wanted_prediction(latents, noise, times, alphas, kind), wanted)


def test_another_prediction_type_is_refused() -> None:
    latents, noise = _tensors(1, 4, 3, 3)
    with pytest.raises(ValueError, match="sample"):
        wanted_prediction(latents, noise, torch.tensor([1]), torch.ones(1000), "sample")
