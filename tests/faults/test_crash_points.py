"""A kill or a power loss at any effect on the disk of any command: the same command again ends as if nothing had been.

The short form records every command and goes on from some points of each that differ; `-m slow` from all of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdkit.stages import STAGES
from tests.faults.matrix import Matrix, written_around
from tests.faults.recorder import Recording
from tests.faults.scenarios import NAMES

SAMPLE = 2


# A training takes as long as all the others.
SOME = [pytest.param(name, marks=pytest.mark.slow if name == "train" else ()) for name in NAMES]


@pytest.mark.parametrize("name", SOME)
def test_some_points_of_every_command(matrix: Matrix, name: str) -> None:
    tally = matrix.try_points(name, 1 if name in ("train", "tokens") else SAMPLE)
    print(name, json.dumps(tally.as_json()))
    assert tally.points > tally.effects
    assert tally.lost == []


def test_every_stage_is_among_the_commands() -> None:
    told = {name.partition(",")[0] for name in NAMES}
    assert {*STAGES, "add", "remove", "compact", "review decisions"} <= told


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_all_points_of_every_command(matrix: Matrix, name: str) -> None:
    tally = matrix.try_points(name)
    print(name, json.dumps(tally.as_json()), flush=True)
    assert tally.lost == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_around_the_storage_functions(matrix: Matrix, name: str) -> None:
    """Every file of a result comes by renaming a whole one, but for those that grow line by line and say so."""
    assert written_around(matrix.record(name)[0]) == []


def test_the_check_sees_what_is_written_around(tmp_path: Path) -> None:
    recording = Recording()
    recording.record(tmp_path, lambda: (tmp_path / "table.csv").write_text("a,b\n"))
    assert written_around(recording) == ["table.csv"]
