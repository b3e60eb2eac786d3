"""What README and docs show exists: every command with its options, the set-up commands, links, the examples."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cdkit.cli.app import app
from cdkit.core.errors import CdkitError
from cdkit.pipeline.spec import load
from tests.docs.reference import PAGE, commands, page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", flags=re.DOTALL)
SHOWN = [path for path in PAGES if path != PAGE]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(path: Path, language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(path.read_text(encoding="utf-8")) if found == language]


def _commands() -> list[tuple[str, str]]:
    shown = []
    for path in SHOWN:
        text = path.read_text(encoding="utf-8")
        lines = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
        joined = [part for line in lines for part in line.split(" && ")]
        shown += [(path.name, line) for line in joined if line.startswith("cdkit ")]
        shown += [(path.name, line) for line in re.findall(r"`(cdkit [a-z][^`]*)`", text)]
    return shown


def _find(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"cdkit has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(("name", "line"), _commands())
def test_every_command_and_option_exists(name: str, line: str) -> None:
    command, rest = _find(shlex.split(line)[1:])
    known = {name for parameter in command.params for name in getattr(parameter, "opts", [])}
    known |= {name for parameter in command.params for name in getattr(parameter, "secondary_opts", [])}
    assert {word.split("=")[0] for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize("words", [" ".join(words) for words in commands(typer.main.get_command(app))])
def test_a_page_says_what_every_command_is_for(words: str) -> None:
    assert any(f"cdkit {words}" in path.read_text(encoding="utf-8") for path in SHOWN)


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.docs.reference"


def test_the_two_set_up_commands_stand_there_as_they_are_used() -> None:
    lines = [line for _, block in BLOCK.findall(README) for line in block.splitlines()]
    assert "pip install -e . && cdkit run pipelines/quickstart.yaml" in lines
    assert "pip install -e '.[test]' && pytest" in lines
    assert "pip install --quiet -e '.[test]' && pytest" in (ROOT / ".ci" / "run").read_text()


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if target.startswith(("http:", "https:")):
            continue
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            headings = [line.strip("# ").lower() for line in linked.read_text().splitlines() if line.startswith("#")]
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_paths_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for named in re.findall(r"`((?:cdkit|tests|pipelines|indexes|docs)/[\w./-]*)`", text):
        # Indexes of the reader's own are folders.
        assert (ROOT / named).exists() or (named.startswith("indexes/") and not Path(named).suffix), named


def test_rooms_and_files_of_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?)`", text)
    assert len(named) > 20
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "cdkit" / path).exists(), path


def test_every_extra_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(project["optional-dependencies"])


def test_every_exit_code_is_explained() -> None:
    codes = {error.exit_code for error in _errors(CdkitError)} | {0, 130, 141}
    rows = re.findall(
        r"^\| (\d+) \|", (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert {int(row) for row in rows} == codes


def _errors(error: type[CdkitError]) -> list[type[CdkitError]]:
    return [error, *(inner for subclass in error.__subclasses__() for inner in _errors(subclass))]


@pytest.mark.parametrize("path", SHOWN, ids=lambda path: path.name)
def test_pipelines_that_are_shown_are_valid(path: Path, tmp_path: Path) -> None:
    for block in _blocks(path, "yaml"):
        if "stages" in yaml.safe_load(block):
            (tmp_path / "shown.yaml").write_text(block)
            load(tmp_path / "shown.yaml", {}, tmp_path / "run")


@pytest.mark.parametrize("path", [path for path in SHOWN if _blocks(path, "python")], ids=lambda path: path.name)
def test_python_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for example in _blocks(path, "python"):
        exec(re.sub(r"steps=(?:120|25)\b", "steps=2", example), scope)
    assert scope["image"].size == (32, 32)
    assert scope["star"].details["steps"] == 2
    assert len(scope["stars"]) == 8
    assert len(scope["samples"]) == 2
    assert scope["both"].tokens == ["<new1>", "<new2>"]
    assert scope["clip"].threshold > 0.5
    assert scope["result"].manifest.details["rank"] == 4
