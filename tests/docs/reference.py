"""Writes docs/cli.md, every command's own help: `python -m tests.docs.reference`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from cdkit.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
HEAD = """# Commands

What every command says with `--help`. Data goes to stdout, words and progress to stderr; `--format json` prints one
object, `--format quiet` only the essential value; an error in JSON is `{"error": {"code", "message", "hint"}}`.
"""
WIDTH = 100


def commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something, in the order of `cdkit --help`."""
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*words, name))
        else:
            yield (*words, name)


def help_of(words: tuple[str, ...]) -> str:
    """What `cdkit WORDS --help` prints on a terminal of 100 columns."""
    shown = CliRunner().invoke(app, [*words, "--help"], prog_name="cdkit", env={"COLUMNS": str(WIDTH), "TERM": "dumb"})
    if shown.exit_code:
        raise AssertionError(f"cdkit {' '.join(words)} --help: {shown.output}")
    return "\n".join(line.rstrip() for line in shown.output.strip().splitlines())


def page() -> str:
    """The whole page as Markdown."""
    sections = [f"## cdkit {' '.join(words)}\n\n```text\n{help_of(words)}\n```\n" for words in _all()]
    return "\n".join([HEAD, *sections])


def _all() -> list[tuple[str, ...]]:
    return list(commands(typer.main.get_command(app)))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
