"""`--help` of every command: two or three examples that parse, and room in a narrow terminal."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer

from cdkit.cli import app as application
from cdkit.cli.parsing import COLUMNS_FOR_TABLES, broken
from tests.cli.running import command_words, ran

COMMANDS = command_words(application.app)
GROUPS = sorted({words[:-1] for words in COMMANDS})
NARROW = 60


def _command(words: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(application.app)
    for word in words:
        found = found.commands[word]
    return found


def _examples(words: tuple[str, ...]) -> list[str]:
    heading, *examples = _command(words).epilog.split("\n\n")
    assert heading == "Examples:"
    return [example.strip() for example in examples]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_there_are_two_or_three_examples_of_this_command(words: tuple[str, ...]) -> None:
    examples = _examples(words)
    assert 2 <= len(examples) <= 3
    assert len(set(examples)) == len(examples)
    known = {name for option in _command(words).params for name in (*option.opts, *option.secondary_opts)}
    for example in examples:
        line = shlex.split(example.partition("|")[0])
        assert tuple(line[1 : 1 + len(words)]) == words
        assert {word.partition("=")[0] for word in line if word.startswith("--")} <= known


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_narrow_help_keeps_every_option_whole(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))
    help = ran([*words, "--help"]).out
    assert [line for line in help.splitlines() if len(line) > NARROW] == []
    shown = [name for option in _command(words).params if not getattr(option, "hidden", False) for name in option.opts]
    assert all(name in help for name in shown if name.startswith("--"))
    assert "\\[" not in help
    # Pasted as they stand, the examples are the examples.
    pasted = help.partition("Examples:")[2].replace(" \\\n", " ")
    assert [shlex.split(line) for line in pasted.splitlines() if line.strip()] == [
        shlex.split(example) for example in _examples(words)
    ]


@pytest.mark.parametrize("words", GROUPS, ids=lambda words: " ".join(words) or "cdkit")
def test_narrow_help_of_a_group_names_every_command(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(NARROW))
    help = ran([*words, "--help"]).out
    assert all(len(line) <= NARROW for line in help.splitlines())
    inside = {other[len(words)] for other in COMMANDS if other[: len(words)] == words}
    assert all(re.search(rf"(?<![\w-]){name}(?![\w-])", help) for name in inside)


def test_wide_help_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS_FOR_TABLES))
    help = ran(["train", "--help"]).out
    assert "╭" in help
    assert "--gradient-accumulation" in help
    assert "Examples:" in help


def test_a_long_command_breaks_between_words_only() -> None:
    command = "cdkit sample --prompt 'a photo of a dog' --base \"my models/sd\" | jq ."
    for width in range(10, 80):
        lines = broken(command, width)
        joined = " ".join(line.removesuffix(" \\").strip() for line in lines)
        assert joined == command
        assert all(line.endswith(" \\") for line in lines[:-1])
