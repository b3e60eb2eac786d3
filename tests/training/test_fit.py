"""Batches, accumulation and checkpointing that fit into a card."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.training import fit
from cdkit.training.config import TrainConfig
from cdkit.training.fit import USABLE, fitted, smaller_fit, ways
from cdkit.training.memory import GIB, estimate_memory
from tests.support.progress import Notes
from tests.training.running import Material
from tests.training.test_memory import real_sdxl

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def _config(**values: Any) -> TrainConfig:
    return TrainConfig.model_validate({"base": "owner/model", "concepts": {"dog": "photos"}, **values})


def test_smaller_batches_are_the_same_training() -> None:
    config = _config(batch_size=6, gradient_accumulation=2)
    tried = [(way.batch_size, way.gradient_accumulation, way.gradient_checkpointing) for way in ways(config)]
    assert tried == [
        *((6, 2, False), (4, 3, False), (3, 4, False), (2, 6, False)),
        *((6, 2, True), (4, 3, True), (3, 4, True), (2, 6, True), (1, 12, True)),
    ]
    assert all(way.gradient_checkpointing for way in ways(_config(gradient_checkpointing=True)))
    assert [way.batch_size for way in ways(_config(batch_size=1))] == [1, 1]


def test_a_smaller_card_gets_smaller_batches_and_the_estimate_fits(material: Material) -> None:
    config, plan, facts = real_sdxl(material, precision="bf16")
    notes, chosen = Notes(), {}
    for size in ("24GB", "16GB"):
        sized = config.model_copy(update={"fit": size, "batch_size": 8})
        way = fitted(sized, plan, facts, CUDA, notes.note)
        assert way.batch_size is not None
        assert way.batch_size * way.gradient_accumulation == 8
        needed = estimate_memory(way, plan, facts, CUDA).total
        assert needed <= fit.SIZES[size] * USABLE
        chosen[size] = (not way.gradient_checkpointing, way.batch_size)
        assert notes.notes[-1].startswith(f"--fit {size}: batches of {way.batch_size} × ")
    assert chosen["16GB"] < chosen["24GB"]
    # Keys, values and their optimizer alone are 5.1 GiB there, the frozen weights as much.
    with pytest.raises(ConfigError, match="does not fit into 8GB: the least that it takes is") as caught:
        fitted(config.model_copy(update={"fit": "8GB"}), plan, facts, CUDA, notes.note)
    assert "--fit" in caught.value.hint


def test_auto_is_what_is_free(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan, facts = real_sdxl(material, precision="bf16", fit="auto")
    for free, larger in ((80, True), (17, False)):
        monkeypatch.setattr(fit, "device_memory", lambda device, free=free: (free * GIB, 80 * GIB))
        way = fitted(config, plan, facts, CUDA, Notes().note)
        assert (way == config) == larger
    monkeypatch.setattr(fit, "device_memory", lambda device: None)
    assert fitted(config, plan, facts, CUDA, Notes().note) == config


def test_what_fits_has_frozen_weights_in_bf16_unless_the_user_says_otherwise() -> None:
    assert _config(fit="8GB").precision == "bf16"
    assert _config(fit="8GB", precision="fp16").precision == "fp16"
    assert _config(fit="8GB", device="cpu").precision == "no"
    assert _config().precision == "no"


def test_the_next_size_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    assert smaller_fit(_config(fit="16GB"), CPU) == "12GB"
    assert smaller_fit(_config(fit="8GB"), CPU) == "8GB"
    monkeypatch.setattr(fit, "device_memory", lambda device: (1, 20 * GIB))
    assert smaller_fit(_config(), CUDA) == "16GB"
