"""One choice of device for whatever runs a model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from cdkit.core.devices import choose_device
from cdkit.core.errors import ConfigError
from cdkit.deltas.base_model import load_base_model
from cdkit.encoders import load_text_encoder
from cdkit.encoders.image_towers import load_image_encoder

LOADING: dict[str, Callable[[str | None], Any]] = {
    "text encoder": lambda device: load_text_encoder("embedded", device=device),
    "image encoder": lambda device: load_image_encoder("embedded", device=device),
    "base model": lambda device: load_base_model("embedded", device=choose_device(device)),
}


@pytest.mark.parametrize("device", [None, "auto"])
@pytest.mark.parametrize("kind", LOADING)
def test_apples_gpu_is_chosen_by_all(monkeypatch: pytest.MonkeyPatch, kind: str, device: str | None) -> None:
    assert LOADING[kind]("cpu").device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Cached, as torch's own is: torch looks behind the cache.
    monkeypatch.setattr(torch.backends.mps, "is_available", cache(lambda: True))
    # This torch is built without it, and says so when a model is sent there.
    with pytest.raises((RuntimeError, AssertionError), match=r"mps|MPS"):
        LOADING[kind](device)


def test_cuda_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device().type == "cuda"
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cdua", "cuda:99", "meta", "", "cpu:x", "-1"])
@pytest.mark.parametrize("kind", LOADING)
def test_a_device_that_is_not_there_is_one_mistake_everywhere(kind: str, device: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no device '{device}' here") as caught:
        LOADING[kind](device)
    assert "cdkit doctor" in caught.value.hint
