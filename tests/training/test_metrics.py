from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.training.metrics import Metrics


def _sums(weighted: float, targets: float = 2.0, images: float = 4.0) -> torch.Tensor:
    return torch.tensor([weighted, 4.0, targets, 2.0, images])


def test_rows_are_means_and_continue_where_a_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    metrics = Metrics(path)
    metrics.resume(0)
    for step in range(1, 5):
        metrics.add(step, _sums(6.0 * step))
    lines = path.read_text().splitlines()
    assert lines[0] == "step,loss,target_loss,regularization_loss,seconds"
    assert lines[2].startswith("2,3.0,1.0,2.0,")
    # What a killed run wrote after its checkpoint, the last row half, is written again.
    path.write_text("\n".join(lines)[:-8])
    again = Metrics(path)
    again.resume(2)
    assert path.read_text().splitlines() == lines[:3]
    again.add(3, _sums(0.0))
    assert again.mean_loss(2) == pytest.approx(1.5)
    assert again.seconds >= float(lines[2].split(",")[-1])


def test_a_loss_that_is_not_finite_stops_with_its_step_and_what_to_try(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv", interval=3)
    metrics.resume(0)
    metrics.add(1, _sums(4.0))
    metrics.add(2, _sums(float("nan")))
    with pytest.raises(ConfigError, match="NaN at step 2") as caught:
        metrics.add(3, _sums(float("nan")))
    assert "learning-rate" in caught.value.hint
    assert [line[:2] for line in (tmp_path / "metrics.csv").read_text().splitlines()] == ["st", "1,"]


def test_a_run_without_regularization_leaves_its_column_empty(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.resume(0)
    metrics.add(1, torch.tensor([2.0, 4.0, 2.0, 4.0, 0.0]))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("1,0.5,0.5,,")
