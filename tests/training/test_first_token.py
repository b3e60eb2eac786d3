from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.training.trainables import detach_first_token
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture
def unet(tmp_path: Path) -> Any:
    return tiny_pipeline(tmp_path).unet


def _predict(unet: Any, hidden: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    return unet(noise, torch.tensor(300), encoder_hidden_states=hidden).sample


def test_the_output_stays_and_the_first_token_gets_no_gradient(unet: Any) -> None:
    hidden = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    before = _predict(unet, hidden)
    before.square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() > 0
    handles = detach_first_token(unet)
    assert len(handles) == 8
    hidden.grad = None
    after = _predict(unet, hidden)
    assert after.equal(before)
    after.square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() == 0
    assert (hidden.grad[:, 1:].abs().sum(dim=-1) > 0).all()
    for handle in handles:
        handle.remove()
    hidden.grad = None
    _predict(unet, hidden).square().sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].abs().sum() > 0


def test_weights_learn_nothing_from_the_first_token(unet: Any) -> None:
    detach_first_token(unet)
    weight = dict(unet.named_parameters())["mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"]
    hidden = torch.zeros(2, 77, 32)
    hidden[:, 0] = 1.0
    _predict(unet, hidden).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0, "only the first position is not zero"
