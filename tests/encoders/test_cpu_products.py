"""Products through oneDNN are those of PyTorch's own layers, forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cdkit.encoders import cpu_products, load_text_encoder
from cdkit.encoders.cpu_products import use_fast_products
from tests.support import tiny_models


class _Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def _results(model: nn.Module, pictures: torch.Tensor) -> list[torch.Tensor]:
    inputs = pictures.clone().requires_grad_(True)
    output = model(inputs)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert inputs.grad is not None
    return [output.detach(), inputs.grad, *gradients]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("trains", [False, True])
def test_outputs_and_gradients_are_the_same(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "LEAST_PRODUCT", 0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(6, 9, 1),
            nn.Conv2d(9, 8, 3, padding=1),
            nn.Flatten(2),
            nn.Linear(20, 7),
            nn.Linear(7, 5, bias=False),
        )
        pictures = torch.randn(3, 6, 4, 5)
    plain.requires_grad_(trains)
    fast = copy.deepcopy(plain)
    use_fast_products(fast)
    assert [type(one) is type(other) for one, other in zip(plain, fast, strict=True)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = pictures.to(memory_format=layout)
        fast.zero_grad()
        plain.zero_grad()
        for one, other in zip(_results(fast, laid), _results(plain, laid), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("kind", ["embedded", "open_clip"])
def test_a_text_tower_multiplies_through_onednn(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "LEAST_PRODUCT", 0)
    spec = kind if kind == "embedded" else f"open_clip:{tiny_models.open_clip_folder(tmp_path, width=32, heads=2)}"
    encoder = load_text_encoder(spec, device="cpu")
    table = encoder._table(encoder.tokenize(["a dog", "a photo of a cat"]), np.arange(2))
    with torch.profiler.profile() as profile:
        encoder._embed(table)
    called = {event.key for event in profile.key_averages()}
    assert "mkldnn::_linear_pointwise" in called
    assert not called & {"aten::linear", "aten::addmm"}


def test_what_computes_something_else_is_left_alone() -> None:
    layers = nn.Sequential(
        _Doubled(4, 4), nn.Conv2d(4, 4, 1, stride=2), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 1, groups=2)
    )
    kinds = [type(layer) for layer in layers]
    use_fast_products(layers)
    assert [type(layer) for layer in layers] == kinds


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_a_compiler_finds_layers_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_products, "LEAST_PRODUCT", 0)
    traced: list[str] = []

    def backend(module: torch.fx.GraphModule, _: object) -> object:
        traced.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    model = nn.Sequential(nn.Conv2d(6, 8, 1), nn.Flatten(2), nn.Linear(20, 7))
    use_fast_products(model)
    pictures = torch.randn(2, 6, 4, 5)
    compiled = torch.compile(model, backend=backend, fullgraph=True)  # type: ignore[arg-type]
    torch.testing.assert_close(compiled(pictures), model(pictures))
    assert any("linear" in name for name in traced)
    assert not any("pointwise" in name or "_Product" in name for name in traced)
