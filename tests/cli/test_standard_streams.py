"""Standard output that is full, closed or not read, names that are no text, and limits: ours, with the right code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = f"{sys.executable} -m cdkit"
B = "b$'\\xff'd"


def shell(folder: Path, line: str) -> tuple[int, str, bytes]:
    """Run a line of bash in which $C is cdkit; its exit code, and what it left on stderr and stdout."""
    environment = os.environ | {"C": PROGRAM, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, check=False)
    words = done.stderr.decode("utf-8", "surrogateescape")
    assert "Traceback" not in words
    assert "bug in cdkit" not in words
    return done.returncode, words, done.stdout


@pytest.mark.parametrize("command", ["pipeline list --format json", "pipeline list", "--help", "--version"])
def test_a_full_output_is_not_a_full_disk(tmp_path: Path, command: str) -> None:
    code, words, _ = shell(tmp_path, f"$C {command} > /dev/full")
    assert code == 7
    assert "Standard output cannot be written: No space left on device." in words


@pytest.mark.parametrize("command", ["pipeline list --format json", "pipeline list", "pipeline list --format quiet"])
def test_a_closed_output_is_said(tmp_path: Path, command: str) -> None:
    code, words, _ = shell(tmp_path, f"$C {command} >&-")
    assert code == 7
    assert "Standard output cannot be written: it is closed." in words


@pytest.mark.parametrize("command", ["pipeline list --format json", "pipeline list", "--help"])
def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path, command: str) -> None:
    # The pipe is certain to have no reader by the time that something is written.
    code, words, _ = shell(tmp_path, f"(sleep 0.3; exec $C {command}) | true; exit ${{PIPESTATUS[0]}}")
    assert (code, words) == (141, "")


@pytest.mark.parametrize("end", ["2>/dev/full", "2>&-", "2>&- <&-"])
def test_words_that_nobody_can_get_change_nothing(tmp_path: Path, end: str) -> None:
    code, words, printed = shell(tmp_path, f"$C pipeline list --format json {end}")
    assert (code, words) == (0, "")
    assert json.loads(printed)["pipelines"]
    code, _, printed = shell(tmp_path, f"$C index info nowhere --format json {end}")
    assert code == 3
    assert json.loads(printed)["error"]["code"] == "input"


def test_an_error_keeps_its_code_where_it_cannot_be_printed(tmp_path: Path) -> None:
    for end in (">/dev/full", ">&-"):
        code, words, _ = shell(tmp_path, f"$C index info nowhere --format json {end}")
        assert code == 3
        assert "nowhere does not exist" in words


def test_closed_streams_are_not_taken_by_files(tmp_path: Path) -> None:
    code, _, _ = shell(tmp_path, "$C pipeline copy quickstart copied.yaml >&- 2>&- <&-")
    assert code == 7
    assert (tmp_path / "copied.yaml").read_text().startswith(("#", "name:"))


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [
        (f"index info {B}", 3, "input"),
        (f"index build --captions nowhere.csv --out {B}", 3, "input"),
        (f"index build --captions pool.csv --out {B}", 7, "output"),
        (f"index search {B} x", 3, "input"),
        (f"retrieve index {B} --out set", 2, "configuration"),
        (f"sample --prompt {B} --out drawn", 2, "configuration"),
        (f"sample --prompt x --delta {B} --out drawn", 3, "input"),
        (f"train --concept {B}=photos --out tuned", 2, "configuration"),
        (f"run {B}", 3, "input"),
        (f"run quickstart --out {B}", 7, "output"),
        (f"export {B} --to diffusers-lora --out lora", 3, "input"),
    ],
)
def test_names_and_texts_that_are_not_utf_8(tmp_path: Path, command: str, code: int, kind: str) -> None:
    (tmp_path / "pool.csv").write_text("text,url\na dog,http://a.test/1\n")
    found, _, printed = shell(tmp_path, f"$C {command} --format json")
    assert (found, json.loads(printed)["error"]["code"]) == (code, kind)
    assert not [path for path in tmp_path.iterdir() if path.name != "pool.csv"]


def test_a_path_is_printed_with_the_bytes_it_has(tmp_path: Path) -> None:
    code, _, printed = shell(tmp_path, f"$C pipeline copy quickstart {B}.yaml --format quiet")
    assert (code, printed) == (0, b"b\xffd.yaml\n")
    code, _, printed = shell(tmp_path, f"$C pipeline copy quickstart {B}.yaml --force --format json")
    assert (code, json.loads(printed)) == (0, {"path": "b\udcffd.yaml"})


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("index build --captions pool.csv --out $N", 7),
        ("index build --captions pool.csv --out deep/$N/x", 7),
        ("index build --captions $N --out x", 3),
        ("index search $N x", 3),
        ("sample --prompt x --delta $N --out x", 3),
        ("sample --prompt x --base ./$N --out x", 3),
        ("run quickstart --out $N", 7),
        ("run $N", 3),
        ("pipeline copy quickstart $N.yaml", 7),
    ],
)
def test_a_name_that_is_too_long(tmp_path: Path, command: str, code: int) -> None:
    (tmp_path / "pool.csv").write_text("text,url\na dog,http://a.test/1\n")
    found, words, _ = shell(tmp_path, f"N={'n' * 300}; $C {command}")
    assert found == code
    assert "Hint:" in words


@pytest.mark.parametrize(
    ("limit", "command", "code", "words"),
    [
        ("-f 1", "index build --captions pool.csv --out index", 7, "larger than it may (ulimit -f is 1 kB)"),
        ("-n 7", "index build --captions pool.csv --out index", 2, "Too many files are open at once (ulimit -n is 7)"),
        ("-v 300000", "index build --captions pool.csv --out index", 2, "ulimit -v is 300000"),
        ("-v 300000", "sample --prompt x --out drawn", 2, "ulimit -v is 300000"),
        ("-v 1000000", "index build --captions pool.csv --out index", 2, "ulimit -v is 1000000"),
        ("-v 3000000", "sample --prompt x --out drawn", 2, "ulimit -v is 3000000"),
    ],
)
def test_limits_are_named(tmp_path: Path, limit: str, command: str, code: int, words: str) -> None:
    (tmp_path / "pool.csv").write_text("text,url\na dog,http://a.test/1\n")
    found, said, printed = shell(tmp_path, f"ulimit {limit}; $C {command} --format json")
    assert found == code, said
    assert words in said
    assert json.loads(printed)["error"]["code"] == ("output" if code == 7 else "resources")


CRASHING = """
import os, sys
from cdkit.cli.process import run_watched
from cdkit.core.errors import ResourceError
what = sys.argv[1]
def command():
    if what == "abort":
        os.abort()
    if what == "exit":
        os._exit(1)
    if what == "kill":
        os.kill(os.getpid(), 9)
    return int(what)
try:
    code = run_watched(command)
except ResourceError as error:
    print(error.message)
    code = error.exit_code
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("0", 0, ""),
        ("5", 5, ""),
        ("141", 141, ""),
        ("exit", 2, "exit code 1"),
        ("abort", 2, "exit code -6"),
        ("kill", 137, ""),
    ],
)
def test_a_command_that_a_library_ends_is_told_from_one_that_ended(what: str, code: int, words: str) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHING, what], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert words in done.stdout
