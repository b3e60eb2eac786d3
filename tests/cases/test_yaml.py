"""YAML that explodes, hides a mistake or is none: refused within a second, the mistake and its line named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cdkit.cli.app import execute_command
from cdkit.core.errors import ConfigError
from cdkit.core.yaml_files import MOST_BYTES, parse_yaml, read_yaml

CASES = Path(__file__).parent / "18-yaml-bombs"
SECONDS = 2.0  # a second on a quiet machine

_TEN = [f"${{v{n}}}" for n in range(9)]
LAUGHS = "vars:\n  v0: [x, x, x, x, x, x, x, x, x]\n" + "".join(f"  v{n + 1}: {[v] * 9}\n" for n, v in enumerate(_TEN))
TEXTS = "vars:\n  v0: 0123456789\n" + "".join(f"  v{n + 1}: {v * 10}\n" for n, v in enumerate(_TEN))
CHAIN = "vars:\n  a0: [x]\n" + "".join(f'  a{n}: ["${{a{n - 1}}}"]\n' for n in range(1, 900))
MANY = "vars:\n" + "".join(f"  a{n}: 1\n" for n in range(2000))
UNKNOWN = (
    "vars:\n" + "".join(f"  {'n' * 90}{n}: 1\n" for n in range(900))
    + "stages:\n" + "".join(f"  s{n}: {{run: report, run_{n}: \"${{{'m' * 90}{n}}}\"}}\n" for n in range(500))
)  # fmt: skip
STAGE = "\nstages: {s: {run: report}}\n"


def _refused(path: Path, capsys: pytest.CaptureFixture[str], *command: str) -> str:
    clock = time.monotonic()
    code = execute_command([*(command or ("run", "--dry-run")), str(path)])
    assert time.monotonic() - clock < SECONDS
    printed = capsys.readouterr()
    assert code == 2, printed.err
    assert printed.out == ""
    assert len(printed.err) < 10_000
    return printed.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("anchors", "line 7: more than 100,000 values"),
        ("each", "makes 777,600,000 stages; 1,000 are the most (line 3)"),
        ("cyclic", "line 2: *a stands in what &a names"),
        ("dup", "line 1: the key 's' is given twice"),
        ("by_stage", "stages.s.by: chooses the value of a setting or a variable, not a whole stage (line 1)"),
        ("nul", r"line 1: a text with the control character '\x00'"),
        ("sur", "line 1: an escape of half a surrogate pair"),
    ],
)
def test_the_case(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in _refused(CASES / f"{name}.yaml", capsys)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a {b: {c: *a}}" + STAGE, "line 1: *a stands in"),
        ("a: *b" + STAGE, "line 1: *b is used before there is an &b"),
        (LAUGHS + STAGE, "vars.v5: stands for more than 100,000 values"),
        (TEXTS + STAGE, "vars.v4: with its variables it is a text of more than 100,000 characters (line 6)"),
        (CHAIN + STAGE, "nests too deep, with its variables (line 42)"),
        (MANY + STAGE, "vars: more than 1,000 variables (line 1)"),
        (UNKNOWN, "at least 30 mistake(s)"),
        ("vars: {l: [1, 2]}\nstages:\n  a: {run: report}\n  a: {run: tokens}", "line 4: the key 'a' is given twice"),
        ("vars: {w: a}\nstages:\n  s: {run: train, concepts: {a: x, '${w}': y}}", "there are two keys 'a' (line 3)"),
        ("vars: {b: by}\nstages:\n  s: {by: b, x: {run: report}}", "stages.s: must be a mapping with `run: STAGE`"),
        ("stages: {s: {run: report, x: " + "[" * 50_000 + "]" * 50_000 + "}}", "line 1: "),
        ("stages: {s: {run: report, x: " + "[" * 50 + "]" * 50 + "}}", "line 1: more than 40 lists"),
        ("a: [" * 3000, "line 1: "),
        ("stages: {s: {run: sample, seeds: 1" + "0" * 5000 + "}}", "is not a number that can be used"),
        ("stages: {s: {run: train, seed: 36893488147419103232}}", "is not a number that can be used"),
        ("stages: {s: {run: train, learning_rate: .inf}}", "line 1: .inf is not a number that can be used"),
        ("x: !!python/object/apply:os.system ['touch pwned']" + STAGE, "line 1: a tag (tag:yaml.org,2002:python/"),
        ("x: !!binary aGFsbG8=" + STAGE, "line 1: a tag"),
        ("x: !mine {a: 1}" + STAGE, "line 1: a tag (!mine)"),
        ("d: &d {run: report}\nstages:\n  s:\n    <<: *d", "line 4: a merge key (<<)"),
        ("stages:\n  on: {run: report}", "line 2: the key on is true in YAML, not a text: put it in quotes"),
        ("stages:\n  1: {run: report}", "line 2: the key 1 is a number in YAML"),
        ("stages: {s: {run: train, concepts: {no: photos}}}", "line 1: the key no is false in YAML"),
        ("*none : 1" + STAGE, "line 1: *none is used before there is an &none"),
        ("x: &one 1\n*one : 2" + STAGE, "line 2: the key *one is a number in YAML, not a text"),
        ("stages:\n  ? [a, b]\n  : {run: report}", "line 2: a key is a list"),
        ("stages:\n  ? {a: b}\n  : {run: report}", "line 2: a key is a list or a mapping"),
        ("name: 2024-01-01" + STAGE, "line 1: 2024-01-01 is a date in YAML: put it in quotes"),
        ("vars: {when: 2001-12-14t21:59:43.10-05:00}" + STAGE, "is a date in YAML"),
        ("vars: {at: 12:30:45}" + STAGE, "line 1: 12:30:45 is a number of base 60"),
        ("- {run: report}\n- {run: tokens}", "is not a pipeline: it must be a mapping"),
        ("just words", "is not a pipeline"),
        ("", "is not a pipeline"),
        ("a: 1\n---\na: 2", "line 2: a second document starts"),
        ("stages:\n\ts: {run: report}", "line 2: a tab"),
        ("stages:\n  s:\n   run: report\n  \tx: 1", "line 4: a tab"),
        ("stages: {s: {run: report}", "line 1: "),
        ('stages: {s: {run: tokens, index: "a\\u001b[31mb"}}', r"line 1: a text with the control character '\x1b'"),
        ("stages:\n  s: {run: report\x07}", r"line 2: the control character '\x07'"),
        ("description: \ufffe" + STAGE, "line 1: "),
        ("stages: {" + ", ".join(f"s{n}: {{run: nope}}" for n in range(900)) + "}", "at least 30 mistake(s)"),
        (f"stages: {{? {'s' * 5000} : {{run: report}}}}", "at most 100"),
        (f"? {'k' * 100_000}\n: 1" + STAGE, "unknown key"),
    ],
)
def test_another_of_its_kind(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text, encoding="utf-8")
    assert words in _refused(path, capsys, "pipeline", "validate")
    assert not list(tmp_path.glob("pwned"))


def test_what_is_no_text_file_is_called_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    for content, words in (
        (b"name: x\n\x89PNG\r\n\x1a\n" + os.urandom(1000), "is not UTF-8 text (line 2)"),
        ("name: x".encode("utf-16"), "is not UTF-8 text (line 1)"),
        (b"a: 1\n" * MOST_BYTES, "has more than 1 MiB"),
    ):
        path.write_bytes(content)
        for command in (("run",), ("pipeline", "validate"), ("pipeline", "show")):
            assert words in _refused(path, capsys, *command)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert "has more than 1 MiB" in _refused(path, capsys)
    path.unlink()
    os.mkfifo(path)
    assert "is not a file" in _refused(path, capsys)
    assert "is not a file" in _refused(tmp_path, capsys)


def test_an_index_recipe_is_read_by_the_same_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    command = ["index", "build", "--out", str(tmp_path / "out"), "--recipe"]
    for text, words in (
        ("name: a\nname: b", "line 2: the key 'name' is given twice"),
        ("settings: {seed: 1}\nsettings: &s {enocder: *s}", "line 2: *s stands in"),
        ("name: a\nsettings:\n  enocder: y", "settings: enocder: unknown setting; did you mean 'encoder'?"),
        ("name: !!python/name:os.system", "line 1: a tag"),
        ("a: [", "line "),
    ):
        path.write_text(text)
        assert words in _refused(path, capsys, *command)


def test_what_yaml_is_for_still_works(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "\ufeff%YAML 1.1\n---\n# words\nlist: &l [1, -2, 0x1F, 1_000, 2.5, true, ~, 'on', \"\\u00e9\\t\"]\n"
        "again: [*l, *l]\nchoice: {by: list, 2: one, true: two}\ntext: |\n  a\n  b\n...\n",
        encoding="utf-8",
    )
    document = read_yaml(path, scalar_keys_beside="by")
    numbers = [1, -2, 31, 1000, 2.5, True, None, "on", "é\t"]
    assert document.value["list"] == numbers
    assert document.value["again"] == [numbers, numbers]
    assert document.value["choice"] == {"by": "list", 2: "one", True: "two"}
    assert document.value["text"] == "a\nb\n"
    assert document.located("choice.by: wrong") == "choice.by: wrong (line 6)"
    with pytest.raises(ConfigError, match="the key 1 is a number"):
        parse_yaml("choice: {by: list, 1: one}")
