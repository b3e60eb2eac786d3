"""Keys and values of all layers at once, and the start token without a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.training.projections import KeysAndValues, detach_first_token
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


@pytest.mark.parametrize("detaches_first", [False, True])
def test_keys_and_values_at_once_are_those_of_each_layer(tmp_path: Path, detaches_first: bool) -> None:
    random = torch.Generator().manual_seed(0)
    texts = [torch.randn(2, 77, 32, generator=random) for _ in range(2)]
    results: dict[bool, list[torch.Tensor]] = {}
    for together in (False, True):
        unet = tiny_pipeline(tmp_path).unet
        assert KeysAndValues.fits(unet)
        keys_and_values = KeysAndValues(unet, detaches_first=detaches_first) if together else None
        if not together and detaches_first:
            detach_first_token(unet)
        outcome = results.setdefault(together, [])
        for text in texts:
            hidden = text.clone().requires_grad_(True)
            if keys_and_values is not None:
                keys_and_values.project(hidden)
            predicted = _predict(unet, hidden)
            predicted.square().sum().backward()
            assert hidden.grad is not None
            outcome += [predicted.detach(), hidden.grad]
        outcome += [p.grad.clone() for p in unet.parameters() if p.grad is not None]
        # Another text than the one that was projected, as when samples are drawn.
        outcome.append(_predict(unet, texts[0]).detach())
    assert len(results[True]) == len(results[False])
    for one, other in zip(results[True], results[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_large_keys_and_values_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = tiny_pipeline(tmp_path).unet
    monkeypatch.setattr("cdkit.training.projections.MOST_NUMBERS", 1000)
    assert not KeysAndValues.fits(unet)
