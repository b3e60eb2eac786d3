"""A kill or a power loss at any effect on the disk of any command: the same command again ends as if nothing had been.

The short form records every command and goes on from some points of each that differ; `-m slow` from all of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from cdkit.cli.app import app
from cdkit.deltas.config import ExportConfig
from cdkit.merging.config import MergeConfig
from cdkit.stages import STAGES
from tests.cli.running import command_words
from tests.faults.counts import count
from tests.faults.matrix import Matrix, written_around
from tests.faults.recorder import Recording
from tests.faults.scenarios import NAMES

SAMPLE = 2
LONG = ("train", "train, class images", "tokens")


# A training takes as long as all the others.
SOME = [pytest.param(name, marks=pytest.mark.slow if name.startswith("train") else ()) for name in NAMES]
# By the command: those that write, and those of them whose runs are called otherwise.
CALLED = {
    **{"index import": "import", "index embed": "embed", "index build": "index, exact", "index add": "add, exact"},
    **{"index remove": "remove, exact", "index compact": "compact, exact", "tokens count": "token-counts"},
    **{"tokens rare": "tokens", "delta import": "delta-import", "delta compress": "delta-compress"},
    **{"inspect weights": "weight-change", "inspect attention": "attention", "review": "review decisions"},
}
# They answer and write no file. What `publish` leaves is on the hub (test_publishing.py).
ANSWERING = {
    *("index plan", "index search", "index info", "tokens explain", "delta inspect", "preference score", "doctor"),
    *("serve", "publish", "pipeline list", "pipeline show", "pipeline validate", "pipeline schema"),
}


@pytest.mark.parametrize("name", SOME)
def test_some_points_of_every_command(matrix: Matrix, name: str) -> None:
    tally = matrix.try_points(name, 1 if name in LONG else SAMPLE)
    print(name, json.dumps(tally.as_json()))
    assert tally.points > tally.effects
    assert tally.lost == []


def test_every_stage_is_among_the_commands() -> None:
    told = {name.partition(",")[0] for name in NAMES}
    assert {*STAGES, "add", "remove", "compact", "review decisions"} <= told


def test_every_command_that_writes_is_among_them() -> None:
    """A new command is recorded, or named as one that writes nothing."""
    told = {*NAMES, *(name.partition(",")[0] for name in NAMES)}
    commands = {" ".join(words) for words in command_words(app)}
    assert commands >= ANSWERING
    assert {CALLED.get(name, name) for name in commands - ANSWERING} <= told


def test_every_way_and_kind_is_among_them() -> None:
    for command, field, config in (("merge", "way", MergeConfig), ("export", "to", ExportConfig)):
        for value in get_args(config.model_fields[field].annotation):
            assert f"{command}, {value}" in NAMES


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_all_points_of_every_command(matrix: Matrix, name: str) -> None:
    tally = matrix.try_points(name)
    outcomes = {"survived": tally.tried - len(tally.lost), "lost": len(tally.lost)}
    count(f"kills and power losses in {name}", outcomes, points=tally.points)
    assert tally.lost == []


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written_around_the_storage_functions(matrix: Matrix, name: str) -> None:
    """Every file of a result comes by renaming a whole one, but for those that grow line by line and say so."""
    assert written_around(matrix.record(name)[0]) == []


def test_the_check_sees_what_is_written_around(tmp_path: Path) -> None:
    recording = Recording()
    recording.record(tmp_path, lambda: (tmp_path / "table.csv").write_text("a,b\n"))
    assert written_around(recording) == ["table.csv"]
