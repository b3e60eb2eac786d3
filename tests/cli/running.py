"""Command lines run in this process, with what they printed."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import typer

from cdkit.cli.app import execute_command


@dataclass(frozen=True)
class Ran:
    """One command line's exit code and output."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON value on stdout; raises when there is anything else."""
        return json.loads(self.out)


def ran(words: Sequence[object] | str) -> Ran:
    """Run one command line: its words, or as it would be typed, with or without `cdkit` in front."""
    line = shlex.split(words) if isinstance(words, str) else [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = execute_command(line[1:] if line[0] == "cdkit" else line)
    return Ran(code, out.getvalue(), err.getvalue())


def command_words(group: typer.Typer, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command of an app: ("run",), ("index", "build"), …"""
    found = [(*words, str(command.name)) for command in group.registered_commands]
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found += command_words(inner.typer_instance, (*words, str(inner.name)))
    return found
