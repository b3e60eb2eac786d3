"""live.html while a training runs, and when it has ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdkit.training.live_page import LIVE_NAME, POINTS, LivePage, page, smoothed
from tests.training.running import Material, run

ROWS = [
    {"step": step, "loss": 1.0 / step, "target_loss": 2.0 / step, "regularization_loss": None, "seconds": 0.5 * step}
    for step in range(1, 11)
]


def test_a_running_page_loads_itself_anew_and_a_finished_one_does_not() -> None:
    running = page(ROWS, 40, ["samples/step-000010.png"], finished=False)
    assert 'http-equiv="refresh"' in running
    assert "Step 10 of 40" in running
    assert "about 15 s left" in running
    assert '<img src="samples/step-000010.png"' in running
    assert "photos: 0.2000" in running
    assert "regularization" not in running, "there is no such loss"
    assert "refresh" not in page(ROWS, 10, [], finished=True)


def test_a_curve_has_few_points_and_keeps_its_mean() -> None:
    values = [(float(step), float(step % 2)) for step in range(1, 1001)]
    curve = smoothed([*values[:500], (500.5, None), *values[500:]])
    assert len(curve) <= POINTS
    assert curve[-1][0] == 1000
    assert sum(loss for _, loss in curve) / len(curve) == pytest.approx(0.5, abs=0.05)
    assert smoothed([]) == []


def test_pages_are_not_written_at_every_step(tmp_path: Path) -> None:
    live = LivePage(tmp_path, 10, "samples")
    live.update(ROWS[:1])
    live.update(ROWS[:2])
    assert "Step 1 of 10" in (tmp_path / LIVE_NAME).read_text()
    live.update(ROWS, finished=True)
    assert "Step 10 of 10" in (tmp_path / LIVE_NAME).read_text()


def test_samples_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step in (999_999, 1_000_000):
        (tmp_path / "samples" / f"step-{step:06d}.png").touch()
    LivePage(tmp_path, 10, "samples").update(ROWS)
    written = (tmp_path / LIVE_NAME).read_text()
    assert written.index("samples/step-1000000.png") < written.index("samples/step-999999.png")


def test_a_training_leaves_its_page_with_its_samples(material: Material, out: Path) -> None:
    run(material.config(steps=2, batch_size=2, sample_every=1), out)
    written = (out / LIVE_NAME).read_text()
    assert written.index("samples/step-000002.png") < written.index("samples/step-000001.png")
    assert "Step 2 of 2" in written
    assert "refresh" not in written
