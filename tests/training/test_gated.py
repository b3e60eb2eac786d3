"""Training what acts where the concept's words stand alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import load_delta
from cdkit.training.base_facts import read_base
from cdkit.training.passes import EagerPass, GraphedPass
from cdkit.training.plan import make_plan
from cdkit.training.setup import set_up
from tests.support.progress import Notes
from tests.training.running import Interrupted, Material, StopAfter, delta_tensors, run

METHOD, CPU = "custom-diffusion-gated", torch.device("cpu")


def _config(material: Material, **values: Any) -> Any:
    return material.config(method=METHOD, regularization={}, learning_rate=1e-2, augmentation=True, **values)


def test_what_was_trained_is_what_is_drawn(material: Material, tmp_path: Path) -> None:
    """The prediction of the trained model is that of the base with the delta on it, for prompts with and without."""
    config = _config(material, sample_every=3)
    run(config, tmp_path / "out")
    delta = load_delta(tmp_path / "out")
    assert not delta.changes
    assert [gate.words for gate in delta.gated] == [("<new1> cat",)]
    assert (tmp_path / "out" / "samples" / "step-000003.png").exists()
    facts = read_base(config.base)
    setup = set_up(config, make_plan(config, facts, Notes().note), facts.load(), CPU, Context(None, Notes()))  # type: ignore[arg-type]
    for name, weight in setup.trainables.weights.items():
        weight.data.copy_(delta.gated[0].changes[name])  # type: ignore[arg-type]
    setup.trainables.rows["text_encoder"].rows.data.copy_(delta.tokens[0].rows["text_encoder"])
    batch = setup.denoising.completed(setup.batches.make(0, range(4)))
    features = setup.denoising.conditioning.features(batch.prompts)
    noisy, _ = setup.denoising.schedule.noised(batch.latents, batch.noise, batch.timesteps)
    with torch.no_grad():
        losses = setup.denoising.losses_given(features, batch)
        setup.denoising.gate.mask = None  # type: ignore[union-attr]
        without = setup.denoising.denoiser(noisy, batch.timesteps, encoder_hidden_states=features.hidden).sample
    pipeline = load_base_model(config.base, device=CPU)
    with apply_deltas(pipeline, [delta]), torch.no_grad():
        hidden, _ = pipeline.encode_prompt(batch.prompts, CPU, 1, False)
        drawn = pipeline.unet(noisy, batch.timesteps, encoder_hidden_states=hidden).sample
    assert not drawn.allclose(without, atol=1e-3)
    squared = (drawn - batch.noise).square() * batch.mask
    wanted = squared.sum(dim=(1, 2, 3)) / (batch.mask.sum(dim=(1, 2, 3)) * drawn.shape[1])
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)


def test_a_recorded_pass_gates_as_one_kernel_by_kernel(material: Material) -> None:
    config = _config(material, template=["photo of a {}", "{} x"])
    facts = read_base(config.base)
    setup = set_up(config, make_plan(config, facts, Notes().note), facts.load(), CPU, Context(None, Notes()))  # type: ignore[arg-type]
    eager = EagerPass(setup.denoising, lambda loss: loss.backward(), 4)
    weights = list(setup.trainables.weights.values())

    def again(work: Any, rehearsal: Any) -> Any:
        rehearsal()
        return work

    graphed = GraphedPass(eager, weights, lambda loss: loss, Notes().note, again)
    for step in range(3):
        batch = setup.denoising.completed(setup.batches.make(step, range(4)))
        found = []
        for kind in (eager, graphed):
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            found.append((kind(batch), [weight.grad for weight in weights if weight.grad is not None]))
        torch.testing.assert_close(found[0], found[1])
        assert all(gradient.any() for gradient in found[0][1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_goes_on_bit_for_bit(material: Material, tmp_path: Path, checkpointing: bool) -> None:
    config = _config(material, steps=4, checkpoint_every=2, sample_every=3, gradient_checkpointing=checkpointing)
    run(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "parts", progress=StopAfter(3))
    run(config, tmp_path / "parts")
    whole, parts = delta_tensors(tmp_path / "whole"), delta_tensors(tmp_path / "parts")
    assert all(value.equal(parts[name]) for name, value in whole.items())


def test_nothing_has_to_be_kept_and_nothing_trains_on_top(material: Material, tmp_path: Path) -> None:
    notes = Notes()
    run(material.config(method=METHOD), tmp_path / "out", progress=notes)
    assert any("is not used: --keep none" in note for note in notes.notes)
    assert not any("will drift" in note for note in notes.notes)
    with pytest.raises(ConfigError, match="stay as they are"):
        material.config(method=METHOD, keep="images")
    with pytest.raises(ConfigError, match="needs a token"):
        material.config(method=METHOD, no_token=True, regularization={})
    second = {"concepts": {"dog": str(material.root / "dog")}, "regularization": {}, "token": {"dog": "<new2>=dog"}}
    with pytest.raises(ConfigError, match="on top of a gated delta"):
        run(material.config(delta=[str(tmp_path / "out")], **second), tmp_path / "second")
