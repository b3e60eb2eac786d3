"""Keys and values that change along a concept's own directions only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.deltas.low_rank import LowRank
from cdkit.training.orthogonal import SHARE, concept_directions
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, run

METHOD = "custom-diffusion-orthogonal"


def _photos(seed: int) -> list[torch.Tensor]:
    return [torch.randint(256, (3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)]


def test_directions_are_orthonormal_and_follow_from_the_photos() -> None:
    one, other = concept_directions(_photos(0), 128), concept_directions(_photos(1), 128)
    assert one.shape == (128 // SHARE, 128)
    torch.testing.assert_close(one @ one.T, torch.eye(len(one)), atol=1e-5, rtol=0)
    assert one.equal(concept_directions(_photos(0), 128))
    # Of one basis: two concepts' directions are the same or at right angles, and few are the same.
    crossed = (one @ other.T).abs()
    assert ((crossed < 1e-5) | (crossed > 1 - 1e-5)).all()
    assert (crossed > 0.5).sum() <= len(one) // 2


def test_a_training_changes_keys_and_values_along_the_directions_alone(material: Material, tmp_path: Path) -> None:
    result = run(material.config(method=METHOD, learning_rate=1e-2), tmp_path / "out")
    delta = load_delta(tmp_path / "out")
    assert len(delta.changes) == 8
    pipeline = load_base_model(str(material.root / "base"), device=torch.device("cpu"))
    parameters = {name: value.clone() for name, value in pipeline.unet.named_parameters()}
    for change in delta.changes.values():
        assert isinstance(change, LowRank)
        assert change.rank == 32 // SHARE
        assert change.up.any()
    factors = sum(change.up.numel() for change in delta.changes.values() if isinstance(change, LowRank))
    assert result.manifest.details["parameters"] == factors + 32
    outside = torch.eye(32) - (down := next(iter(delta.changes.values())).down).T @ down  # type: ignore[union-attr]
    with apply_deltas(pipeline, [delta]):
        for name, value in pipeline.unet.named_parameters():
            change = value - parameters[name]
            assert change.any() == (name in delta.changes)
            if change.any():
                torch.testing.assert_close(change @ outside, torch.zeros_like(change), atol=1e-5, rtol=0)


def test_it_goes_on_bit_for_bit(material: Material, tmp_path: Path) -> None:
    config = material.config(method=METHOD, steps=4, checkpoint_every=2)
    run(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "parts", progress=StopAfter(3))
    run(config, tmp_path / "parts")
    whole, parts = delta_tensors(tmp_path / "whole"), delta_tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(value.equal(parts[name]) for name, value in whole.items())


def test_two_concepts_in_one_training_have_their_directions_one_below_the_other(
    material: Material, tmp_path: Path
) -> None:
    concepts = {name: str(material.root / name) for name in ("cat", "dog")}
    run(material.config(method=METHOD, concepts=concepts), tmp_path / "out")
    assert {change.rank for change in load_delta(tmp_path / "out").changes.values()} == {2 * (32 // SHARE)}  # type: ignore[union-attr]
