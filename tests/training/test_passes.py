"""A pass replayed on the tensors it was recorded with does what one kernel by kernel does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.protocols import Context
from cdkit.training.base_facts import read_base
from cdkit.training.passes import EagerPass, GraphedPass
from cdkit.training.plan import make_plan
from cdkit.training.setup import Setup, set_up
from tests.support.progress import Notes
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline
from tests.training.running import Material

CPU = torch.device("cpu")


def again(work: Callable[[], None], rehearsal: Callable[[], object]) -> Callable[[], None]:
    """What stands for a CUDA graph here: the recorded tensors are read and written anew."""
    rehearsal()
    return work


def _setup(material: Material, **values: Any) -> Setup:
    config = material.config(**values)
    facts = read_base(config.base)
    plan = make_plan(config, facts, Notes().note)
    return set_up(config, plan, facts.load(), CPU, Context(None, Notes()))  # type: ignore[arg-type]


def _passes(setup: Setup, notes: Notes, record: Any) -> tuple[EagerPass, GraphedPass]:
    eager = EagerPass(setup.denoising, lambda loss: loss.backward(), 4)
    return eager, GraphedPass(eager, list(setup.trainables.weights.values()), lambda loss: loss, notes.note, record)


def _taken(setup: Setup) -> dict[str, torch.Tensor | None]:
    """The gradients as they are, and none from now on but zeros in place."""
    named = setup.trainables.named()
    taken = {name: None if entry.grad is None else entry.grad.clone() for name, entry in named.items()}
    for entry in named.values():
        if entry.grad is not None:
            entry.grad.zero_()
    return taken


@pytest.mark.parametrize("base", ["sd", "xl"])
def test_replaying_gives_the_same_losses_and_gradients(material: Material, tmp_path: Path, base: str) -> None:
    if base == "xl":
        tiny_xl_pipeline(tmp_path / "xl")
    setup = _setup(material, base=str(tmp_path / "xl") if base == "xl" else str(material.root / "base"))
    notes = Notes()
    eager, graphed = _passes(setup, notes, again)
    for step in range(3):
        # Two batches in one step, as accumulation has them.
        parts = [setup.batches.make(step, samples) for samples in (range(4), range(2, 4))]
        losses = [eager(batch) for batch in parts]
        wanted = _taken(setup)
        assert all(gradient is not None and gradient.any() for gradient in wanted.values())
        replayed = [graphed(batch) for batch in parts]
        for one, other in zip(losses, replayed, strict=True):
            torch.testing.assert_close(one, other)
        for name, gradient in _taken(setup).items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)
    assert not notes.notes


def test_a_batch_without_a_trained_token_is_recorded_apart(material: Material) -> None:
    setup = _setup(material)
    eager, graphed = _passes(setup, Notes(), again)
    for sample in (0, 1, 0, 1):  # a photo, a regularization image
        batch = setup.batches.make(0, range(sample, sample + 1))
        eager(batch)
        wanted = _taken(setup)
        graphed(batch)
        for name, gradient in _taken(setup).items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)


def test_what_cannot_be_recorded_runs_kernel_by_kernel_and_says_so_once(material: Material) -> None:
    def fail(work: Any, rehearsal: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    setup, notes = _setup(material), Notes()
    eager, graphed = _passes(setup, notes, fail)
    batch = setup.batches.make(0, range(4))
    losses = eager(batch)
    wanted = _taken(setup)
    for _ in range(2):
        torch.testing.assert_close(graphed(batch), losses)
        for name, gradient in _taken(setup).items():
            torch.testing.assert_close(gradient, wanted[name], msg=name)
    assert notes.notes == [
        "The step runs kernel by kernel: it cannot be captured as a CUDA graph "
        "(operation not permitted when stream is capturing)."
    ]
