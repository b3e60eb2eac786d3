"""What keeps the class word as it was: the base model's predictions, its images, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdkit.core.protocols import Context
from cdkit.training.base_facts import read_base
from cdkit.training.passes import EagerPass, GraphedPass
from cdkit.training.plan import make_plan
from cdkit.training.setup import Setup, set_up
from tests.support.progress import Notes
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, losses, run

CPU = torch.device("cpu")


def _setup(material: Material, **values: object) -> Setup:
    config = material.config(keep="distil", regularization={}, **values)
    facts = read_base(config.base)
    plan = make_plan(config, facts, Notes().note)
    return set_up(config, plan, facts.load(), CPU, Context(None, Notes()))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["custom-diffusion", "custom-diffusion-orthogonal", "fine-tune-all"])
def test_the_base_itself_is_asked_whatever_was_trained(material: Material, method: str) -> None:
    setup = _setup(material, method=method)
    asked = setup.denoising.completed(setup.batches.make(0, range(4)))
    assert asked.distilled == (1, 3)
    # Before training the class prompt's prediction is the base's, and its loss nothing.
    assert setup.denoising.losses(asked)[[1, 3]].max() < 1e-12
    addresses = [weight.data_ptr() for weight in setup.trainables.weights.values()]
    with torch.no_grad():
        for weight in setup.trainables.weights.values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    again = setup.denoising.completed(setup.batches.make(0, range(4)))
    assert again.wanted is not None
    assert asked.wanted is not None
    assert again.wanted.equal(asked.wanted)
    assert again.wanted[0].equal(again.noise[0]), "what photos train towards is as ever"
    assert setup.denoising.losses(again)[[1, 3]].min() > 0
    assert [weight.data_ptr() for weight in setup.trainables.weights.values()] == addresses


def test_a_recorded_pass_distils_as_one_kernel_by_kernel(material: Material, tmp_path: Path) -> None:
    tiny_xl_pipeline(tmp_path / "xl")
    for base in (str(material.root / "base"), str(tmp_path / "xl")):
        setup = _setup(material, base=base)
        eager = EagerPass(setup.denoising, lambda loss: loss.backward(), 4)
        weights = list(setup.trainables.weights.values())

        def again(work: object, rehearsal: object) -> object:
            rehearsal()  # type: ignore[operator]
            return work

        graphed = GraphedPass(eager, weights, lambda loss: loss, Notes().note, again)  # type: ignore[arg-type]
        for step in range(2):
            with torch.no_grad():
                weights[0] += 0.01
            batch = setup.denoising.completed(setup.batches.make(step, range(4)))
            found = []
            for kind in (eager, graphed):
                for weight in weights:
                    weight.grad = torch.zeros_like(weight)
                found.append((kind(batch), [weight.grad.clone() for weight in weights if weight.grad is not None]))
            torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("keep", ["distil", "both"])
def test_distilling_goes_on_bit_for_bit(material: Material, tmp_path: Path, keep: str) -> None:
    config = material.config(
        keep=keep, steps=4, checkpoint_every=2, augmentation=True, template=["photo of a {}", "{} x"]
    )
    run(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "parts", progress=StopAfter(3))
    run(config, tmp_path / "parts")
    whole, parts = delta_tensors(tmp_path / "whole"), delta_tensors(tmp_path / "parts")
    assert all(value.equal(parts[name]) for name, value in whole.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_generated_images_are_drawn_once_and_trained_on(material: Material, tmp_path: Path) -> None:
    notes = Notes()
    values = {"keep": "generated", "regularization": {}, "regularization_count": 2, "checkpoint_every": 1}
    with pytest.raises(Interrupted):
        run(material.config(**values), tmp_path / "out", progress=StopAfter(52))
    drawn = sorted((tmp_path / "out" / "class-images" / "0").glob("*.png"))
    assert len(drawn) == 2
    before = [path.stat().st_mtime_ns for path in drawn]
    result = run(material.config(**values), tmp_path / "out", progress=notes)
    assert [path.stat().st_mtime_ns for path in drawn] == before
    assert result.manifest.details["prompts"] == ["photo of a <new1> cat"]
    assert all(row.split(",")[3] for row in losses(tmp_path / "out")[1:]), "a loss of regularization images"


def test_a_set_that_is_not_used_is_said(material: Material, tmp_path: Path) -> None:
    notes = Notes()
    run(material.config(keep="distil"), tmp_path / "out", progress=notes)
    assert any("is not used: --keep distil" in note for note in notes.notes)
    assert not any("No regularization images" in note for note in notes.notes)
