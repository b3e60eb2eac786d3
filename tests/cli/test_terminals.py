"""What a terminal is told: no colour with NO_COLOR, nothing wider than it is, data apart from words in pipes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.terminal import run_on_terminal

COLOUR = re.compile(r"\x1b\[[0-9;]*?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


def _on_a_terminal(arguments: list[str], columns: int, environment: dict[str, str], cwd: Path) -> str:
    """What one command prints on a terminal of its own."""
    command = [sys.executable, "-m", "cdkit", *arguments]
    return run_on_terminal(command, columns, environment=environment, cwd=cwd)[0]


LINE = ["run", "nowhere.yaml"]


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color(tmp_path: Path, environment: dict[str, str], coloured: bool) -> None:
    printed = _on_a_terminal(LINE, 100, environment, tmp_path)
    assert "There is no pipeline 'nowhere.yaml'" in printed.replace("\r\n", " ")
    assert bool(COLOUR.search(printed)) == coloured


def test_tables_fit_a_terminal_of_60_columns(tmp_path: Path) -> None:
    printed = _on_a_terminal(["pipeline", "list"], 60, {"NO_COLOR": "1"}, tmp_path)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    table = plain.partition("→")[0]
    assert "two-concepts-merged" in table
    assert all(len(line) <= 60 for line in table.splitlines())
    assert "…" not in table


def test_a_pipe_gets_data_and_the_terminal_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdkit", "pipeline", "list", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "quickstart" in [entry["name"] for entry in json.loads(done.stdout)["pipelines"]]
    assert "cdkit pipeline show" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_an_error_is_one_object_too(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cdkit", "index", "info", "nowhere", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "input"
    assert error["hint"]
