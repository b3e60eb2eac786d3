"""What the README shows exists: every command with its options, the set-up commands, links to files, the example."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from cdkit.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("cdkit ")] + re.findall(r"`(cdkit [a-z][^`]*)`", README)


def _find(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"cdkit has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_exists(line: str) -> None:
    command, rest = _find(shlex.split(line)[1:])
    known = {name for parameter in command.params for name in getattr(parameter, "opts", [])}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known


def test_the_two_set_up_commands_stand_there_as_they_are_used() -> None:
    assert "pip install -e . && cdkit run pipelines/quickstart.yaml" in LINES
    assert "pip install -e '.[test]' && pytest" in LINES
    assert "pip install --quiet -e '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", line.strip("# ").lower()).replace(" ", "-") for line in README.splitlines()}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif not target.startswith("http"):
            assert (ROOT / target).exists()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = next(block for language, block in BLOCKS if language == "python")
    scope: dict[str, Any] = {}
    exec(example.replace("num_inference_steps=25", "num_inference_steps=2").replace("steps=120", "steps=2"), scope)
    assert scope["image"].size == (32, 32)
    assert scope["result"].manifest.details["steps"] == 2
    assert scope["clip"].threshold > 0.5


def test_recipes_and_pipelines_travel_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"pipelines": "cdkit/shipped/pipelines", "indexes": "cdkit/shipped/indexes"}
