"""Several processes train as one with a larger batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdkit.errors import ConfigError
from cdkit.training.processes import Team, accelerated, average_gradients
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
