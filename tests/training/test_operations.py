"""How many operations a step has: those of the U-Net forward, and of the gradients that somebody uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cdkit.deltas.families.table import family_of_denoiser
from cdkit.deltas.methods import METHODS, selected_names
from cdkit.deltas.text_features import TextFeatures
from cdkit.training.batches import Batch
from cdkit.training.denoising import Conditioning, Denoising
from cdkit.training.passes import EagerPass
from cdkit.training.schedule import Schedule
from cdkit.training.trainables import detach_first_token

META = torch.device("meta")
SAMPLES, CELLS, POSITIONS, WIDTH = 8, 64, 77, 768


@pytest.fixture
def unet() -> Any:
    """As Stable Diffusion 1.5's but shallower, without data, with keys and values that train."""
    from diffusers import UNet2DConditionModel

    with META:
        unet = UNet2DConditionModel(
            sample_size=CELLS,
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
            layers_per_block=1,
            block_out_channels=(320, 640),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    parameters = dict(unet.requires_grad_(False).eval().named_parameters())
    for name in selected_names(unet, METHODS["custom-diffusion"]):
        parameters[name].requires_grad_(True)
    return unet


def _batch() -> Batch:
    shape = (SAMPLES, 4, CELLS, CELLS)
    with META:
        return Batch(
            latents=torch.empty(shape),
            noise=torch.empty(shape),
            mask=torch.empty(SAMPLES, 1, CELLS, CELLS),
            timesteps=torch.zeros(SAMPLES, dtype=torch.long),
            weights=torch.empty(SAMPLES),
            is_regularization=torch.zeros(SAMPLES, dtype=torch.bool),
            sizes=torch.zeros(SAMPLES, 6, dtype=torch.long),
            prompts=[],
        )


class _Given(Conditioning):
    """Features of a text whose token trains."""

    def features(self, prompts: Any) -> TextFeatures:
        return TextFeatures(torch.empty(SAMPLES, POSITIONS, WIDTH, device=META, requires_grad=True))


def _needed(unet: Any) -> int:
    """Counted module by module: a product forward, one for its input's gradient where that needs one, one for its
    weight's where it trains; an attention's two products forward, and four for its gradients."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight: Any = module.weight
        forward = 2 * output.numel() * weight[0].numel()
        total += forward * (1 + inputs[0].requires_grad + weight.requires_grad)

    def attend(module: nn.Module, inputs: Any, keywords: Any, output: torch.Tensor) -> None:
        nonlocal total
        source = keywords.get("encoder_hidden_states")
        queries, keys = inputs[0].shape[1], (inputs[0] if source is None else source).shape[1]
        forward = 4 * SAMPLES * queries * keys * module.inner_dim  # type: ignore[operator]
        total += forward * (3 if output.requires_grad else 1)

    handles = [
        module.register_forward_hook(count) for module in unet.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    handles += [
        module.register_forward_hook(attend, with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith((".attn1", ".attn2"))
    ]
    batch = _batch()
    hidden = torch.empty(SAMPLES, POSITIONS, WIDTH, device=META, requires_grad=True)
    unet(batch.latents, batch.timesteps, encoder_hidden_states=hidden)
    for handle in handles:
        handle.remove()
    return total


def test_a_step_computes_what_its_gradients_need_and_no_more(unet: Any) -> None:
    needed = _needed(unet)
    detach_first_token(unet)
    denoising = Denoising(
        unet, _Given(family_of_denoiser(unet), [], {}), Schedule(torch.empty(1000, device=META), "epsilon")
    )
    with FlopCounterMode(display=False) as counter:
        EagerPass(denoising, lambda loss: loss.backward(), SAMPLES)(_batch())
    assert counter.get_total_flops() == pytest.approx(needed, rel=0.05)
