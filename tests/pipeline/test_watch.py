"""A run that is watched: every stage's state as it changes, what it does and says, and how it ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdkit.core.errors import InputError
from cdkit.pipeline.runner import run
from cdkit.pipeline.spec import Pipeline, load
from cdkit.pipeline.watch import RunStatus
from tests.support.progress import Notes

pytestmark = pytest.mark.usefixtures("adding")
CHAIN = """
name: chain
stages:
  a: {run: adding}
  b: {run: adding, source: a, numbers: []}
  c: {run: adding, numbers: [7]}
"""


class Watcher:
    """Keeps what a run's status was, whenever it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []
        self.doing: set[str] = set()
        self.last: RunStatus | None = None

    def __call__(self, status: RunStatus) -> None:
        states = tuple(stage.state for stage in status.stages)
        if not self.seen or self.seen[-1] != states:
            self.seen.append(states)
        self.doing |= {stage.doing for stage in status.stages}
        self.last = status


def pipeline(tmp_path: Path, **settings: object) -> Pipeline:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN)
    return load(path, {key.replace("__", "."): value for key, value in settings.items()}, tmp_path / "run")


def watched(tmp_path: Path, made: Pipeline, progress: Notes | None = None) -> Watcher:
    watcher = Watcher()
    run(made, tmp_path / "run", forced=set(), stop_after=None, progress=progress or Notes(), watch=watcher)
    return watcher


def test_every_stage_runs_in_turn(tmp_path: Path) -> None:
    notes = Notes()
    watcher = watched(tmp_path, pipeline(tmp_path), notes)
    assert watcher.seen == [
        ("running", "waiting", "waiting"),
        ("done", "waiting", "waiting"),
        ("done", "running", "waiting"),
        ("done", "done", "waiting"),
        ("done", "done", "running"),
        ("done", "done", "done"),
    ]
    assert "adding: 0 of 3" in watcher.doing
    assert watcher.last is not None
    assert watcher.last.ended
    assert watcher.last.left.text() == ""
    assert all(stage.seconds is not None for stage in watcher.last.stages)
    assert [re.sub(r"in [\d.]+ s$|; .* of the run$", "", note).strip() for note in notes.notes] == [
        *("[1/3] a: adding", "[1/3] a: done", "[2/3] b: adding", "[2/3] b: done"),
        *("[3/3] c: adding", "[3/3] c: done"),
    ]


def test_what_is_up_to_date_is_not_spoken_of_and_what_is_stale_says_why(tmp_path: Path) -> None:
    watched(tmp_path, pipeline(tmp_path))
    notes = Notes()
    assert watched(tmp_path, pipeline(tmp_path), notes).seen[-1] == ("cached",) * 3
    assert notes.notes == []
    changed = watched(tmp_path, pipeline(tmp_path, c__plus=9), notes)
    assert changed.seen[-1] == ("cached", "cached", "done")
    assert notes.notes[0].startswith("[3/3] c: adding, plus: 1 → 9")


def test_how_a_run_ended_is_shown_last(tmp_path: Path) -> None:
    watcher = Watcher()
    made = pipeline(tmp_path, b__fail_at=3)
    with pytest.raises(InputError):
        run(made, tmp_path / "run", forced=set(), stop_after=None, progress=Notes(), watch=watcher)
    assert watcher.seen[-1] == ("done", "failed", "waiting")
    assert watcher.last is not None
    assert (watcher.last.problem, watcher.last.hint) == ("stage 'b': cannot add to 3", "Choose another number.")
    assert watcher.last.place() == "[2/3] b"


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    watcher, folder = Watcher(), tmp_path / "run"

    class Interrupting(Notes):
        def note(self, message: str) -> None:
            if message.startswith("[2/3]"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipeline(tmp_path), folder, forced=set(), stop_after=None, progress=Interrupting(), watch=watcher)
    assert watcher.seen[-1] == ("done", "interrupted", "waiting")
    assert watcher.last is not None
    assert watcher.last.ended
    assert "continue" in watcher.last.hint
