"""`cdkit init`: on a terminal and off it, its exit codes, and that what it writes truly runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cdkit import embedded
from cdkit.embedded.pool import write_pool
from tests.cli.running import ran
from tests.support.terminal import CTRL_C, run_on_terminal

COMMAND = [sys.executable, "-m", "cdkit", "init"]
SMALL = {"count": 4, "steps": 2, "sample_every": 0, "seeds": 1, "sampling_steps": 1}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with spaces and umlauts, with a small pool in a cache of its own."""
    folder = tmp_path / "mein Büro"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "write_pool", lambda target: write_pool(target, rows=3000))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [["striped-star"], ["striped-star", "checkered-heart"]])
def test_what_it_writes_runs_as_it_is(names: list[str]) -> None:
    photos = [word for name in names for word in ("--photos", f"embedded:{name}")]
    words = [word for name in names for word in ("--word", name.partition("-")[2])]
    written = ran(["init", "--yes", *photos, *words, "--out", "erste Föhre.yaml", "--format", "json"])
    assert written.code == 0, written.err
    assert written.data["run"] == "cdkit run 'erste Föhre.yaml'"
    checked = ran(written.data["check"])
    assert checked.code == 0, checked.err
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    run = ran(["run", "erste Föhre.yaml", *settings, "--format", "json"])
    assert run.code == 0, run.err
    assert {stage["state"] for stage in run.data["stages"]} == {"done"}
    made = [stage["name"] for stage in run.data["stages"]]
    assert ("merged" in made) == ("together-scores" in made) == (len(names) == 2)
    assert Path(run.data["report"]).is_file()
    live = (Path("runs") / written.data["name"] / "live.html").read_text()
    assert "done in" in live
    assert "Loss of" in live
    assert "Newest samples" in live
    assert 'http-equiv="refresh"' not in live
    assert "prompts: intervals" not in run.err


def test_off_a_terminal_nothing_is_asked_and_all_that_is_missing_is_said() -> None:
    done = subprocess.run(
        [*COMMAND, "--format", "json"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    message = json.loads(done.stdout)["error"]["message"]
    assert "--photos is missing" in message
    assert "--word is missing" in message
    assert list(Path().iterdir()) == []


def test_a_file_that_is_there_is_kept() -> None:
    words = ["init", "--yes", "--photos", "embedded:striped-star"]
    Path("star.yaml").write_text("mine")
    refused = ran(words)
    assert (refused.code, Path("star.yaml").read_text()) == (7, "mine")
    replaced = ran([*words, "--force"])
    assert replaced.code == 0
    assert yaml.safe_load(Path("star.yaml").read_text())["name"] == "star"
    assert (replaced.out, "cdkit run star.yaml --dry-run" in replaced.err) == ("wrote star.yaml\n", True)
    assert ran([*words, "--force", "--format", "quiet"]).out == "star.yaml\n"


@pytest.mark.parametrize("columns", [60, 200])
def test_questions_on_a_terminal(columns: int) -> None:
    typed = [
        ("--photos", "nowhere\n"),
        ("no folder", "embedded:checkered-mug\n"),
        ("--word", "\n"),
        ("--shows", "1\n"),
        ("--photos", "\n"),
        ("--base", "\n"),
        ("--captions", "none\n"),
        ("--keep", "2\n"),
        ("--out", "Tasse ü.yaml\n"),
    ]
    written, screen = run_on_terminal(COMMAND, columns, environment={"NO_COLOR": "1"}, typed=typed)
    assert screen.exit_code == 0, written
    words = " ".join(" ".join(screen.lines_shown).split())
    assert "A folder of 4 to 20, or embedded:striped-star to try it --photos:" in words, "broken within a word"
    assert "Photos of several subjects: a folder for each." in words
    document = yaml.safe_load(Path("Tasse ü.yaml").read_text())
    assert document["vars"]["concepts"][0]["word"] == "mug"
    assert document["vars"]["keep"] == "none"
    assert "cdkit run 'Tasse ü.yaml'" in words


def test_ctrl_c_writes_nothing() -> None:
    typed = [("--photos", "embedded:striped-star\n"), ("--word", CTRL_C)]
    written, screen = run_on_terminal(COMMAND, 80, typed=typed)
    assert screen.exit_code == 130, written
    assert "Traceback" not in written
    assert "Interrupted. Nothing was written." in written
    assert list(Path().iterdir()) == []
