"""Several processes train as one with a larger batch."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.training.processes import Team, accelerated, average_gradients, started_team, total
from tests.training.running import Material, assert_same_training, run


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_two_processes_equal_one_with_the_doubled_batch(material: Material, tmp_path: Path, batch_size: int) -> None:
    # With one sample each, one process sees only targets and the other only regularization images.
    config = material.config(batch_size=2 * batch_size)
    run(config, tmp_path / "one")
    run(material.config(batch_size=batch_size, processes=2), tmp_path / "two")
    assert_same_training(tmp_path / "one", tmp_path / "two", config.base)


def test_a_missing_gradient_counts_as_zero() -> None:
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    (2 * used).sum().backward()
    average_gradients([used, unused])
    assert used.grad is not None
    assert used.grad.tolist() == [2, 2, 2]
    assert unused.grad is not None
    assert unused.grad.tolist() == [0, 0, 0]


def test_fp16_is_refused_on_a_cpu_and_what_was_set_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="GPU"), accelerated(Team(), device=cpu, precision="fp16"):
        pass
    # accelerate keeps one state per process, which would refuse the second precision.
    for precision in ("no", "bf16", "no"):
        with accelerated(Team(), device=cpu, precision=precision) as accelerator:
            assert accelerator.mixed_precision == precision
            assert accelerator.num_processes == 1


def _helpers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def _dying(how: str, note: str, team: Team) -> None:
    """A further process that dies in one of several ways, and notes when."""
    if how != "at the start":
        with accelerated(team, device=torch.device("cpu"), precision="no"):
            for _ in range(20):
                total(torch.ones(3))
            _end(how, note)
    _end(how, note)


def _end(how: str, note: str) -> None:
    Path(note).write_text(str(time.time()))
    if how == "by an error":
        raise InputError("The photos are gone.", hint="Bring them back.")
    if how == "by a bug":
        raise KeyError("photos")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("at the start", r"Training process 1 died \(exit code -9\)"),
        ("killed", r"Training process 1 died \(exit code -9\)"),
        ("by an error", "The photos are gone."),
        ("by a bug", "Training process 1 ended with KeyError: 'photos'"),
    ],
)
def test_a_process_that_dies_is_noticed_at_once(how: str, words: str, tmp_path: Path) -> None:
    note = tmp_path / "died"
    with (
        pytest.raises(CdkitError, match=words) as caught,
        started_team(2, _dying, (how, str(note))) as team,
        accelerated(team, device=torch.device("cpu"), precision="no"),
    ):
        while True:
            total(torch.ones(3))
    assert time.time() - float(note.read_text()) < 20, "not after ten minutes"
    assert caught.value.exit_code == (3 if how == "by an error" else 1)
    assert not _helpers()
    # Nothing is left of it that stands in the way of the next.
    with started_team(1, _dying, ()) as team, accelerated(team, device=torch.device("cpu"), precision="no"):
        assert total(torch.ones(2)).tolist() == [1, 1]


def _adding(team: Team) -> None:
    with accelerated(team, device=torch.device("cpu"), precision="no"):
        assert total(torch.ones(2)).tolist() == [3, 3]


@pytest.mark.timeout(300)
def test_an_error_of_the_first_process_ends_the_others() -> None:
    with (
        pytest.raises(ConfigError, match="no such thing"),
        started_team(3, _adding, ()) as team,
        accelerated(team, device=torch.device("cpu"), precision="no"),
    ):
        assert total(torch.ones(2)).tolist() == [3, 3]
        raise ConfigError("no such thing")
    assert not _helpers()


@pytest.mark.timeout(300)
def test_training_says_why_a_process_of_it_died(material: Material, tmp_path: Path) -> None:
    def kill(step: int) -> None:
        [child] = _helpers()
        child.kill()

    config = material.config(batch_size=2, processes=2, steps=200, checkpoint_every=1)
    timer = threading.Thread(target=_when_it_trains, args=(tmp_path / "out", kill), daemon=True)
    timer.start()
    with pytest.raises(CdkitError, match=r"Training process 1 died \(exit code -9\)") as caught:
        run(config, tmp_path / "out")
    assert "goes on from the last checkpoint" in caught.value.hint
    assert list((tmp_path / "out" / "checkpoints").glob("step-*"))


def _when_it_trains(out: Path, do: Callable[[int], None]) -> None:
    while not list(out.glob("checkpoints/step-*")):
        time.sleep(0.1)
    do(1)
