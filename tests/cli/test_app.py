from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cdkit.cli import app as application
from cdkit.cli import app as commands
from cdkit.cli.app import execute_command
from cdkit.core.errors import EXIT_BUG
from cdkit.stages import STAGES
from tests.support.adding_stage import ADDING


@pytest.fixture
def adding_command(adding: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test stage as a command of an app of its own."""
    from cdkit.cli.options import stage_command

    app = typer.Typer()
    app.command("other")(lambda: None)
    stage_command(
        app,
        "adding",
        "adding",
        help="Add.",
        examples=["cdkit adding --number 1 --out x"],
        human=lambda output, result: print(f"sums: {result.manifest.counts['in']}"),
        data=lambda result: {"state": result.state, "counts": result.manifest.counts},
    )
    monkeypatch.setattr(application, "app", app)


def _json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    parsed = json.loads(capsys.readouterr().out)
    assert isinstance(parsed, dict)
    return parsed


def test_help_is_fast() -> None:
    def seconds() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    for _ in range(5):
        before = seconds()
        subprocess.run([sys.executable, "-m", "cdkit", "--help"], check=True, capture_output=True)
        times.append(seconds() - before)
    # In CPU seconds: what the clock says on an idle machine, whatever else runs on this one.
    assert min(times) < 0.5


def _commands(group: typer.Typer, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [(*words, str(command.name)) for command in group.registered_commands]
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        found += _commands(inner.typer_instance, (*words, str(inner.name)))
    return found


@pytest.mark.parametrize("words", _commands(application.app), ids=" ".join)
def test_every_command_has_help_with_examples(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert execute_command([*words, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert f"cdkit {' '.join(words)}" in text
    assert "--format" in text


def test_every_stage_has_a_command() -> None:
    names = {word for words in _commands(application.app) for word in words}
    renamed = {
        "tokens": "rare",
        "token-counts": "count",
        "index": "build",
        "weight-change": "weights",
        "delta-import": "import",
        "delta-compress": "compress",
    }
    assert {renamed.get(name, name) for name in STAGES} <= names


def test_help_names_exactly_the_commands_there_are() -> None:
    whole = typer.main.get_command(application.app)
    assert [entry.name for entry in commands.ENTRIES] == list(dict.fromkeys(entry.name for entry in commands.ENTRIES))
    assert {entry.name for entry in commands.ENTRIES} == set(whole.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("entry", commands.ENTRIES, ids=lambda entry: entry.name)
def test_a_command_works_in_an_app_of_its_own(entry: commands.Entry) -> None:
    alone = typer.main.get_command(application.assemble(entry.name))
    whole = typer.main.get_command(application.app)
    own, same = alone.commands[entry.name], whole.commands[entry.name]  # type: ignore[attr-defined]
    assert sorted(getattr(own, "commands", {})) == sorted(getattr(same, "commands", {}))
    assert [parameter.name for parameter in own.params] == [parameter.name for parameter in same.params]


@pytest.mark.usefixtures("adding_command")
def test_options_come_from_the_config_class(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = execute_command(["adding", "--number", "4", "5", "6", "--plus", "2", "--out", str(out), "--format", "json"])
    assert code == 0
    assert _json(capsys) == {"state": "done", "counts": {"in": 3, "kept": 3, "rejected": {}}}
    assert (
        execute_command(["adding", "--number", "4", "--number", "5", "--number=6", "--plus", "2", "--out", str(out)])
        == 0
    )
    captured = capsys.readouterr()
    assert captured.out == "sums: 3\n"
    assert "up to date" in captured.err


@pytest.mark.usefixtures("adding_command")
@pytest.mark.parametrize(
    ("arguments", "code", "kind", "words"),
    [
        (["adding", "--plus", "-3"], 2, "configuration", "plus: input should be"),
        (["adding", "--plus", "x"], 2, "configuration", "--plus"),
        (["adding", "--bogus"], 2, "configuration", "--bogus"),
        (["adding", "--source", "gone"], 3, "input", "gone does not exist"),
        (["adding", "--fail-at", "2"], 3, "input", "cannot add to 2"),
        (["adding", "--wanted", "9"], 5, "partial", "3 of 9"),
    ],
)
@pytest.mark.parametrize("format", ["human", "json"])
def test_mistakes_have_a_code_a_hint_and_no_traceback(
    arguments: list[str], code: int, kind: str, words: str, format: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute_command([*arguments, "--out", str(out), "--format", format]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert words in captured.err
    assert "Hint:" in captured.err or kind == "configuration"
    if format == "json" and kind != "partial":
        error = json.loads(captured.out)["error"]
        assert error["code"] == kind
        assert words in error["message"]
    elif format == "json":
        assert json.loads(captured.out)["state"] == "partial"


@pytest.mark.usefixtures("adding_command")
def test_a_folder_that_holds_something_else_exits_7(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute_command(["adding", "--out", str(out)]) == 0
    assert execute_command(["adding", "--plus", "7", "--out", str(out)]) == 7
    assert "plus: 1 → 7" in capsys.readouterr().err
    assert execute_command(["adding", "--plus", "7", "--out", str(out), "--force"]) == 0


@pytest.mark.usefixtures("adding_command")
def test_a_bug_exits_1_and_shows_its_traceback_only_on_request(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("tests.support.adding_stage.add", broken)
    assert execute_command(["adding", "--out", str(out)]) == EXIT_BUG
    captured = capsys.readouterr()
    assert "ZeroDivisionError: oops" in captured.err
    assert "Traceback" not in captured.err
    assert execute_command(["adding", "--out", str(out), "--debug"]) == EXIT_BUG
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("adding_command")
def test_an_interrupt_exits_130_and_says_how_to_go_on(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.support.adding_stage.add", interrupted)
    assert execute_command(["adding", "--out", str(out)]) == 130
    assert "same command" in capsys.readouterr().err


def test_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute_command(["--version"]) == 0
    assert capsys.readouterr().out.strip() == application.cdkit.__version__
    assert execute_command(["indx"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No such command 'indx'" in captured.err


def test_the_stage_under_test_is_real() -> None:
    assert ADDING.config_class().__name__ == "AddingConfig"


def test_pairs_are_named_by_their_option(capsys: pytest.CaptureFixture[str]) -> None:
    for pairs, words in ((["dog"], "takes NAME=VALUE"), (["dog=a", "dog=b"], "names 'dog' twice")):
        options = [part for pair in pairs for part in ("--concept", pair)]
        assert execute_command(["train", *options, "--out", "x"]) == 2
        assert f"--concept {words}" in capsys.readouterr().err
