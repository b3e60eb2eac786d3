"""Time left: in proportion to what was measured, and nothing where nothing was."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.config import canonical
from cdkit.core.manifest import Manifest
from cdkit.pipeline.pace import Pace, Running, TimeLeft, work
from cdkit.pipeline.spec import Step
from cdkit.stages import STAGES


def step(stage: str, name: str = "x", **values: Any) -> Step:
    needed: dict[str, Any] = {"train": {"concepts": {"star": "photos"}}, "sample": {"prompts": ["a", "b"]}}
    config = STAGES[stage].config_class().model_validate({**needed.get(stage, {}), **values})
    return Step(name, stage, values, config)


def test_work_is_counted_where_settings_say_it() -> None:
    assert work(step("train", steps=30).config) == 30
    assert work(step("sample", seeds=3, steps=10).config) == 2 * 3 * 10
    assert work(step("sample", seeds=1).config) == 2 * 50
    assert work(step("retrieve", index="i", prompts=["a"], count=7).config) == 7
    assert work(step("merge", deltas=["a", "b"], index="i").config) == 1


def test_what_was_measured_is_scaled() -> None:
    pace = Pace()
    assert pace.expected(step("train", steps=100)) is None
    pace.learn(step("train", steps=100), 50)
    assert pace.expected(step("train", steps=240)) == pytest.approx(120)
    assert pace.expected(step("train", steps=240, base="another/model")) is None
    assert pace.expected(step("train", steps=240, method="dreambooth")) is None


def test_unknown_stages_are_told_from_known_ones() -> None:
    pace = Pace()
    pace.learn(step("sample", seeds=1, steps=10), 4)
    waiting = [step("sample", seeds=2, steps=10), step("evaluate", samples="x"), step("sample", seeds=1, steps=10)]
    assert pace.left(waiting) == TimeLeft(12, 1)
    assert pace.left(waiting).text() == "at least 12 s left"
    assert pace.left(waiting[::2]).text() == "about 12 s left"
    assert pace.left(waiting[1:2]).text() == ""
    assert TimeLeft(200).text() == "about 3 min 20 s left"


def test_the_stage_in_progress_counts_by_its_own_rate() -> None:
    pace = Pace()
    training = step("train", steps=100)
    # Nothing is known of it, then its own steps a second, whatever an earlier one took.
    assert pace.left([], Running(training, 5, None)) == TimeLeft(0, 1)
    assert pace.left([], Running(training, 5, 20)) == TimeLeft(20)
    pace.learn(training, 500)
    assert pace.left([training], Running(training, 5, 20)) == TimeLeft(520)
    # Of another stage, a task is a part: what a whole one took says more, as long as it is not over.
    drawing = step("sample", seeds=1, steps=10)
    assert pace.left([], Running(drawing, 5, 20)) == TimeLeft(20, 1)
    pace.learn(drawing, 60)
    assert pace.left([], Running(drawing, 5, 20)) == TimeLeft(55)
    assert pace.left([], Running(drawing, 70, None)) == TimeLeft(0)


def test_earlier_runs_count_when_they_are_of_this_machine_and_these_settings(tmp_path: Path) -> None:
    training = step("train", steps=100)

    def learned(host: str, config: dict[str, Any], stage: str = "train", **more: bool) -> float | None:
        Manifest(stage, 1, "f", config, {}, run={"host": host, "seconds": 30.0, **more}).write(tmp_path)
        pace = Pace()
        pace.learn_earlier(training, tmp_path)
        return pace.expected(training)

    settings = canonical(training.config)
    assert learned(platform.node(), settings) == 30
    assert learned("another", settings) is None
    assert learned(platform.node(), settings | {"steps": 5}) is None
    assert learned(platform.node(), settings, "sample") is None
    assert learned(platform.node(), settings, continued=True) is None
    (tmp_path / "manifest.json").write_text("{")
    pace = Pace()
    pace.learn_earlier(training, tmp_path)
    assert pace.expected(training) is None
