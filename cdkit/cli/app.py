"""`cdkit`: assembles the commands, and turns every error into a message, a hint and an exit code."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

import cdkit
from cdkit.cli.output import SESSION, Format, Output
from cdkit.cli.process import ReaderGoneError, guard_streams, memory_is_limited, run_watched
from cdkit.core.errors import EXIT_INTERRUPTED, CdkitError, ConfigError, OutputError, system_problem
from cdkit.core.startup import claim_process

# Set by the shell's completion script, which needs every command's options.
COMPLETING = "_CDKIT_COMPLETE"


def assemble(wanted: str | None = None) -> typer.Typer:
    """The app with the command or group called `wanted`, the others by name only; None: with all of them."""
    assembled = typer.Typer(
        help="Teach a text-to-image model a new concept from a few photos, starting from a table of web captions.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    assembled.callback(invoke_without_command=True)(_root)
    register(assembled, wanted)
    return assembled


@cache
def _whole() -> typer.Typer:
    return assemble()


def __getattr__(name: str) -> typer.Typer:
    # Only who asks for the whole app pays for importing it.
    if name == "app":
        return _whole()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
        assembled = globals().get("app") or assemble(None if COMPLETING in os.environ else _first_word(arguments))
        outcome = typer.main.get_command(assembled).main(list(arguments), prog_name="cdkit", standalone_mode=False)
        # Typer turns ctrl-C into this exit code by itself.
        code = _interrupted(arguments) if outcome == EXIT_INTERRUPTED else outcome if isinstance(outcome, int) else 0
        sys.stdout.flush()
        return code
    except CdkitError as error:
        return _report(error, arguments)
    except typer.TyperException as error:
        usage = error.format_message() if hasattr(error, "format_message") else str(error)
        return _report(ConfigError(usage, hint=f"See cdkit {_command_words(arguments)}--help"), arguments)
    except typer.Abort:
        return _interrupted(arguments)
    except Exception as error:
        return _report_unexpected(error, arguments)


def _report(error: CdkitError, arguments: Sequence[str]) -> int:
    if _debugging(arguments):
        traceback.print_exception(error)
    current = SESSION.get()
    if not isinstance(error, ReaderGoneError):
        # An error that cannot be printed is an error still; its words go to stderr first.
        with suppress(OutputError, ReaderGoneError):
            (current.output if current else Output(_format(arguments))).error(error)
            sys.stdout.flush()
    return error.exit_code


def _report_unexpected(error: Exception, arguments: Sequence[str]) -> int:
    # Late, since only commands with settings need it.
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return _report(ConfigError(str(error)), arguments)
    problem = system_problem(error, _out_folder(arguments))
    if problem is not None:
        return _report(problem, arguments)
    bug = CdkitError(
        f"{type(error).__name__}: {error}",
        hint="This is a bug in cdkit. Run again with --debug and report the traceback.",
    )
    bug.__cause__ = error
    return _report(bug, arguments)


def _interrupted(arguments: Sequence[str]) -> int:
    # Its answers are all that `init` has, and they are asked again.
    kept = "Run the same command to continue: finished work is kept."
    Output().note(f"Interrupted. {'Nothing was written.' if _first_word(arguments) == 'init' else kept}")
    return EXIT_INTERRUPTED


def _debugging(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments or os.environ.get("CDKIT_DEBUG", "") not in ("", "0")


def _format(arguments: Sequence[str]) -> Format:
    """The format asked for when the command line itself could not be parsed."""
    joined = " ".join(arguments).replace("--format=", "--format ")
    return "json" if "--format json" in joined else "human"


def _out_folder(arguments: Sequence[str]) -> Path | None:
    """The output that the command line names."""
    following = dict(itertools.pairwise(arguments))
    joined = [argument.partition("=")[2] for argument in arguments if argument.startswith("--out=")]
    named = following.get("--out") or next(iter(joined), None)
    return Path(named) if named else None


def _first_word(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _command_words(arguments: Sequence[str]) -> str:
    """`index build ` of `index build --captoins x`: the words that name a command."""
    current: Any = typer.main.get_command(globals().get("app") or _whole())
    words = ""
    for argument in arguments:
        current = getattr(current, "commands", {}).get(argument)
        if current is None:
            break
        words += f"{argument} "
    return words


def main() -> None:
    """Entry point of the `cdkit` command."""
    claim_process()
    # A polite kill ends like ctrl-C: workers are stopped, half-written files removed, exit code 130.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    guard_streams()
    arguments = sys.argv[1:]
    if not memory_is_limited():
        sys.exit(execute_command(arguments))
    try:
        sys.exit(run_watched(lambda: execute_command(arguments)))
    except CdkitError as error:
        sys.exit(_report(error, arguments))


@dataclass(frozen=True)
class Entry:
    """A command or group: the module of `cdkit.cli` that registers it, and what `cdkit --help` says of it."""

    name: str
    module: str
    summary: str


ENTRIES = (
    Entry("init", "init", "Write a first pipeline: asks for photos, word, base model, captions and graphics card."),
    Entry("run", "run", "Run a pipeline: what is done already is left alone, what is missing or stale is made."),
    Entry("pipeline", "run", "List, show, check and copy pipelines."),
    Entry("index", "index", "Build, search, look into and change caption indexes."),
    Entry("retrieve", "retrieve", "Find, download and curate images whose captions are like a prompt."),
    Entry("review", "review", "Look at a set's pictures on a page, and reject some by hand."),
    Entry("dataset", "retrieve", "Write a set as other trainers and tools read it."),
    Entry("serve", "serve", "Serve caption indexes: a search page, JSON, and clip-retrieval's protocol."),
    Entry("class-images", "sample", "Draw a regularization set with the base model."),
    Entry("tokens", "tokens", "Count vocabulary tokens, pick rare ones, explain a word."),
    Entry("train", "train", "Teach a base model concepts from 4 to 20 photos each."),
    Entry("merge", "delta", "Merge deltas that were trained one by one, in closed form."),
    Entry("sample", "sample", "Draw images: every prompt with every seed."),
    Entry("evaluate", "evaluate", "Score samples: alignment, KID, drift, overfitting, with intervals."),
    Entry("compare", "evaluate", "Put the scores of several methods in a table, the paper's beside them."),
    Entry("preference", "preference", "Ask people which method's pictures they prefer, and count their answers."),
    Entry("report", "evaluate", "Make the report of a run: one self-contained HTML page."),
    Entry("delta", "delta", "Look into delta files, import other tools' files, and compress."),
    Entry("export", "delta", "Write a delta as files that diffusers, A1111, Forge or ComfyUI load."),
    Entry("publish", "publish", "Publish a set, a delta or an index on the Hugging Face Hub."),
    Entry("inspect", "inspect", "Look into weights, attention and benchmarks."),
    Entry("doctor", "doctor", "Check versions, device, memory, disk and extras, and say what to install."),
)


def register(app: typer.Typer, wanted: str | None) -> None:
    """Add the command or group called `wanted` as it is, and of the others name and summary; None: all as they are.

    Importing a command imports its stage's settings; all of them together take longer than `--help` may.
    """
    modules = dict.fromkeys(entry.module for entry in ENTRIES if wanted in (None, entry.name))
    for entry in ENTRIES:
        if entry.module not in modules:
            app.command(entry.name, help=entry.summary)(_named_only)
    for module in modules:
        import_module(f"cdkit.cli.{module}").register(app)


def _named_only() -> None:
    raise AssertionError("a command that is only named was run")
