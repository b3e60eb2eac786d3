"""`cdkit`: assembles the commands, and turns every error into a message, a hint and an exit code."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from pydantic import ValidationError

import cdkit
from cdkit.cli import (
    class_images,
    delta,
    doctor,
    evaluate,
    export,
    index,
    index_change,
    index_search,
    inspect,
    merge,
    report,
    retrieve,
    run,
    sample,
    tokens,
    train,
)
from cdkit.cli.options import SESSION
from cdkit.cli.output import Format, Output
from cdkit.errors import EXIT_INTERRUPTED, CdkitError, ConfigError
from cdkit.storage import write_problem

app = typer.Typer(
    help="Teach a text-to-image model a new concept from a few photos, starting from a table of web captions.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
run.register(app)
index_search.register(index.app)
index_change.register(index.app)
app.add_typer(index.app, name="index")
retrieve.register(app)
class_images.register(app)
app.add_typer(tokens.app, name="tokens")
train.register(app)
sample.register(app)
merge.register(app)
app.add_typer(delta.app, name="delta")
export.register(app)
evaluate.register(app)
app.add_typer(inspect.app, name="inspect")
report.register(app)
doctor.register(app)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if debug:
        os.environ["CDKIT_DEBUG"] = "1"
    if version:
        print(cdkit.__version__)
        raise typer.Exit


def execute_command(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. Never shows a traceback for a user's mistake."""
    SESSION.set(None)
    try:
        outcome = typer.main.get_command(app).main(list(arguments), prog_name="cdkit", standalone_mode=False)
        # Typer turns ctrl-C into this exit code by itself.
        return _interrupted() if outcome == EXIT_INTERRUPTED else outcome if isinstance(outcome, int) else 0
    except CdkitError as error:
        return _report(error, arguments)
    except typer.TyperException as error:
        usage = error.format_message() if hasattr(error, "format_message") else str(error)
        return _report(ConfigError(usage, hint=f"See cdkit {_command_words(arguments)}--help"), arguments)
    except typer.Abort:
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output has gone (`cdkit … | head`): nothing is wrong, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValidationError as error:
        return _report(ConfigError(str(error)), arguments)
    except Exception as error:
        return _report_unexpected(error, arguments)


def _report(error: CdkitError, arguments: Sequence[str]) -> int:
    if _debugging(arguments):
        traceback.print_exception(error)
    current = SESSION.get()
    (current.output if current else Output(_format(arguments))).error(error)
    return error.exit_code


def _report_unexpected(error: Exception, arguments: Sequence[str]) -> int:
    problem = write_problem(error, path=_out_folder(arguments)) if isinstance(error, OSError) else None
    if problem is not None:
        return _report(problem, arguments)
    bug = CdkitError(
        f"{type(error).__name__}: {error}",
        hint="This is a bug in cdkit. Run again with --debug and report the traceback.",
    )
    bug.__cause__ = error
    return _report(bug, arguments)


def _interrupted() -> int:
    Output().note("Interrupted. Run the same command to continue: finished work is kept.")
    return EXIT_INTERRUPTED


def _debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("CDKIT_DEBUG", "") not in ("", "0")


def _format(arguments: Sequence[str]) -> Format:
    """The format asked for when the command line itself could not be parsed."""
    joined = " ".join(arguments).replace("--format=", "--format ")
    return "json" if "--format json" in joined else "human"


def _out_folder(arguments: Sequence[str]) -> Path:
    following = dict(itertools.pairwise(arguments))
    return Path(following.get("--out", "."))


def _command_words(arguments: Sequence[str]) -> str:
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or len(words) == 2:
            break
        words.append(argument)
    known = [word for word in words[:1] if any(command.name == word for command in app.registered_commands)]
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    if words and words[0] in groups:
        inner = groups[words[0]]
        registered = inner.registered_commands if inner else []
        known = [words[0], *(word for word in words[1:2] if any(command.name == word for command in registered))]
    return "".join(f"{word} " for word in known)


def main() -> None:
    """Entry point of the `cdkit` command."""
    # A polite kill ends like ctrl-C: workers are stopped, half-written files removed, exit code 130.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = execute_command(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
