"""Pipeline files, captions and command lines that nobody would write: an answer or a refusal, soon, and no traceback.

Two thousand in every run; `-m slow` tries a hundred thousand.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cdkit.cli import app as command_line
from cdkit.cli.app import app, execute_command
from cdkit.core.errors import CdkitError
from cdkit.core.text import caption_id, clean_captions
from cdkit.pipeline import spec
from cdkit.stages import STAGES
from tests.faults.counts import count

LONGEST = 2.0
ROUNDS = 10
# What some inputs need, and no command loads before it knows that it does.
LOADED = ("diffusers", "faiss", "open_clip", "pyarrow.parquet", "torch", "transformers")
# They wait for a browser, or reach for the hub.
LASTING = {"serve", "review", "publish", "preference", "doctor"}

NASTY = st.sampled_from(
    [
        *("", " ", "\0", "-", "--", "-1", "0", "1e999", "nan", "inf", "999999999999999999999", "0x10", "１", "½"),
        *("a" * 5000, "é" * 300, "\u202e", "\ud800", "😀", "../..", "/", "~", "/dev/null", "${x}", "${", "$" * 99),
        *("{}", "[]", "null", "true", "a=b", "=", "a=", "=b", "<new1>", "!!python/object:os.system", "&a *a", "%s%n"),
        *(
            "embedded:nothing",
            "open_clip:",
            "transformers:/nowhere",
            "hub:",
            "http://[",
            "file:///etc/passwd",
            "*",
            "?[",
        ),
    ]
)
TEXTS = st.one_of(NASTY, st.text(max_size=40), st.integers().map(str), st.floats().map(str))
KEYS = sorted({name for stage in STAGES.values() for name in stage.config_class().model_fields} | {"run", "each"})
SCALARS = st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(), st.dates())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)
STEPS = st.dictionaries(st.sampled_from(KEYS) | TEXTS, VALUES, max_size=5)
STAGE_STEPS = st.builds(lambda run, values: {**values, "run": run}, st.sampled_from([*STAGES, "x", None]), STEPS)
PIPELINES = st.fixed_dictionaries(
    {},
    optional={
        "name": VALUES,
        "vars": st.dictionaries(TEXTS, VALUES, max_size=3) | VALUES,
        "stages": st.dictionaries(TEXTS, STAGE_STEPS | VALUES, max_size=3) | VALUES,
        "more": VALUES,
    },
)


@contextlib.contextmanager
def soon(what: object) -> Iterator[None]:
    clock = time.process_time()
    yield
    assert time.process_time() - clock < LONGEST, what


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder to be in, with a file that every command is told to write into."""
    folder, before = tmp_path_factory.mktemp("fuzz"), Path.cwd()
    assemble, get_command = command_line.assemble, typer.main.get_command
    os.chdir(folder)
    Path("taken").write_text("a file, not a folder")
    # A process runs one command; assembling all of them for each of thousands would be what takes the time.
    command_line.assemble = lru_cache(64)(assemble)  # type: ignore[assignment]
    typer.main.get_command = lru_cache(64)(get_command)
    # Before the clock is looked at: loading them takes seconds on a machine with more to do.
    for name in LOADED:
        import_module(name)
    assert execute_command(["tokens", "explain", "star"]) == 0
    yield folder
    command_line.assemble, typer.main.get_command = assemble, get_command
    os.chdir(before)


def _pipeline_text(value: Any) -> str:
    try:
        return yaml.safe_dump(value, allow_unicode=True)
    except (yaml.YAMLError, UnicodeError, ValueError):
        return str(value)


def _mangled(text: str, place: int, piece: str) -> str:
    place %= len(text) + 1
    return text[:place] + piece + text[place + len(piece) // 2 :]


SHIPPED = st.sampled_from(sorted(Path(spec.find("quickstart")).parent.glob("*.yaml"))).map(Path.read_text)
FILES = st.one_of(PIPELINES.map(_pipeline_text), st.builds(_mangled, SHIPPED, st.integers(0, 10**6), TEXTS))


def check_pipeline(text: str) -> str:
    path = Path("fuzzed.yaml")
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with soon(text):
        try:
            spec.load(path, {}, Path("run"))
        except CdkitError as error:
            assert error.exit_code in (2, 3), error
            return "refused"
    return "taken"


def check_caption(texts: list[str]) -> str:
    with soon(texts):
        cleaned = clean_captions(texts)
        assert len(cleaned) == len(texts)
        assert all(0 <= caption_id(text) < 1 << 63 for text in cleaned if text)
    return "cleaned"


def _commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    for name, command in group.commands.items():
        if name in LASTING:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), [option for parameter in command.params for option in parameter.opts]


COMMANDS = list(_commands(typer.main.get_command(app)))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    words, options = draw(st.sampled_from(COMMANDS))
    flags = [option for option in options if option.startswith("-") and option != "--debug"]
    piece = st.sampled_from(flags or ["--x"]) | TEXTS.filter(lambda text: text != "--")
    arguments = draw(st.lists(piece, max_size=6))
    # Twice, since an option without its value before it takes the first as that, and a whole run would begin.
    out = ["--out", "taken"] * 2 if "--out" in options else []
    return [*words, *arguments, *out, *(["--format", "json"] if draw(st.booleans()) else [])]


def check_command_line(arguments: list[str]) -> str:
    out, errors = io.StringIO(), io.StringIO()
    with soon(arguments), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = execute_command(arguments)
    assert code in (0, 2, 3, 4, 5, 6, 7), (arguments, errors.getvalue())
    assert "Traceback" not in out.getvalue() + errors.getvalue(), arguments
    assert Path("taken").is_file()
    return "done" if code == 0 else "refused"


@dataclass(frozen=True)
class Kind:
    """What is made up, and what is done with it. some: tries of the short form; many: of a round."""

    strategy: Any
    check: Callable[[Any], str]
    some: int
    many: int


KINDS = {
    "pipeline files": Kind(FILES, check_pipeline, 900, 3500),
    "captions": Kind(st.lists(TEXTS, min_size=1, max_size=4), check_caption, 980, 5000),
    "command lines": Kind(command_lines(), check_command_line, 120, 1500),
}


def try_examples(name: str, examples: int, number: int) -> None:
    kind, outcomes = KINDS[name], Counter[str]()

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(kind.strategy)
    def examine(value: Any) -> None:
        outcomes[kind.check(value)] += 1

    examine()
    count(f"{name} by Hypothesis", outcomes, seed=number)


@pytest.mark.parametrize("name", KINDS)
def test_some(name: str) -> None:
    try_examples(name, KINDS[name].some, 0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("name", KINDS)
def test_many(name: str, number: int) -> None:
    try_examples(name, KINDS[name].many, number)
