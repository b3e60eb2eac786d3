"""A kill or a power loss at any effect on the disk of any command: the same command again ends as if nothing had been.

The short form records every command and goes on from some points of each that differ; `-m slow` from all of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.matrix import Matrix, written_around

SAMPLE = 2
# What takes longest is gone on from in the long form alone.
SLOWEST = ("tokens", "export, diffusers-pipeline")


def test_some_points_of_every_command(matrix: Matrix) -> None:
    tallies = {name: matrix.try_points(name, SAMPLE) for name in matrix.scenarios if name not in SLOWEST}
    print(json.dumps({name: tally.as_json() for name, tally in tallies.items()}))
    assert sum(tally.points for tally in tallies.values()) > 5000
    assert [problem for tally in tallies.values() for problem in tally.lost] == []


def test_every_stage_is_among_the_commands(matrix: Matrix) -> None:
    from cdkit.stages import STAGES

    told = {name.partition(",")[0] for name in matrix.scenarios}
    assert {*STAGES, "add", "remove", "compact", "review decisions"} <= told


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_all_points_of_every_command(matrix: Matrix) -> None:
    problems = []
    for name in matrix.scenarios:
        tally = matrix.try_points(name)
        print(name, json.dumps(tally.as_json()), flush=True)
        problems += tally.lost
    assert problems == []


def test_nothing_is_written_around_the_storage_functions(matrix: Matrix, tmp_path: Path) -> None:
    """Every file of a result comes by renaming a whole one, but for those that grow line by line and say so."""
    for name in ("import", "index, exact", "add, exact", "train", "sample", "retrieve", "export, diffusers-lora"):
        recording, _ = matrix.record(name)
        assert written_around(recording) == [], name


def test_the_check_sees_what_is_written_around(tmp_path: Path) -> None:
    from tests.faults.recorder import Recording

    recording = Recording()
    recording.record(tmp_path, lambda: (tmp_path / "table.csv").write_text("a,b\n"))
    assert written_around(recording) == ["table.csv"]
