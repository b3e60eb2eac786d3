"""Hints with commands: what is pasted names the same folder and prompt, whatever they are called."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cdkit
from cdkit.cli import delta, index, sample, train
from cdkit.cli.app import ENTRIES, execute_command
from cdkit.cli.output import Output
from cdkit.core.manifest import Manifest
from cdkit.execute import Result

FOLDERS = ["out", "two words", "it's :dog: $HOME", "-n", "a;b & c"]
PROMPT = 'a photo of a <new1> "dog" & $(touch pwned) `x`'


def _pasted(printed: str) -> list[list[str]]:
    """The words of every command that was shown after an arrow."""
    lines = [
        line.removeprefix("→ ").removesuffix(" …") for line in printed.splitlines() if line.startswith("→ cdkit ")
    ]
    found = []
    for line in lines:
        words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True, text=True)
        found.append(words.stdout.split("\0")[:-1])
    return found


def _result(stage: str, out: Path, details: dict[str, Any]) -> Result:
    counts = {"in": 1, "kept": 1, "rejected": {}}
    return Result(stage, "done", Manifest(stage, 1, "x", {}, {}, counts=counts, details=details), out, 1.0)


DETAILS: dict[str, dict[str, Any]] = {
    "train": {
        "steps": 1,
        "seconds": 1.0,
        "final_loss": 0.5,
        "bytes_per_concept": 1000,
        "base": "models/my base",
        "tokens": [],
        "prompts": [PROMPT],
    },
    "merge": {
        "tokens": [],
        "constraint_residual": 0.0,
        "drift": 0.0,
        "captions": 9,
        "rank": 1,
        "seconds": 1.0,
        "prompts": [PROMPT, "a cat"],
        "base": "models/my base",
    },
    "class-images": {"accepted": 1},
    "index": {
        "captions": 3,
        "index": {"factory": "Flat", "vectors": 3, "bytes": 9, "bytes_per_caption": 3},
        "recall": {},
        "encoder": {"spec": "embedded", "dimension": 3, "default_threshold": 0.8},
    },
}


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    ("stage", "show", "expected"),
    [
        ("train", train._human, ["--base", "models/my base", "--delta", "OUT", "--prompt", PROMPT]),
        (
            "merge",
            delta._merged,
            ["--base", "models/my base", "--delta", "OUT", "--prompt", PROMPT, "--prompt", "a cat"],
        ),
        ("class-images", sample._drawn_set, ["--regularization", "NAME=OUT"]),
        ("index", index._print_result, ["index", "search", "OUT", "a photo of a dog"]),
    ],
)
def test_what_is_shown_can_be_pasted(
    folder: str, stage: str, show: Any, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    show(Output(), _result(stage, Path(folder), DETAILS[stage]))
    [words] = _pasted(capsys.readouterr().err)
    out = Path(folder)
    given = [word.replace("OUT", folder) for word in expected]
    start = words.index(given[0])
    shown = words[start : start + len(given)]
    assert [str(Path(word)) if word == f"./{out}" else word for word in shown] == given


@pytest.mark.parametrize("folder", FOLDERS[:3])
def test_commands_that_hint_at_the_next(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    target = f"{folder}/my 'own'.yaml"
    assert execute_command(["pipeline", "copy", "quickstart", target]) == 0
    assert _pasted(capsys.readouterr().err) == [["cdkit", "run", target]]
    counts = f"{folder}/counts of it"
    Path("pool.csv").write_text("caption\n" + "a red star\n" * 3)
    assert execute_command(["tokens", "count", "--captions", "pool.csv", "--out", counts]) == 0
    assert _pasted(capsys.readouterr().err) == [["cdkit", "tokens", "rare", "--counts", counts]]


def test_commands_are_put_together_in_one_place() -> None:
    """A path in an f-string behind `cdkit …` would be shown without quotes."""
    names = "|".join(entry.name for entry in ENTRIES)
    bare = re.compile(rf"cdkit (?:{names}) [^\"'{{]*\{{(?!command_line)")
    offenders = [
        f"{path.name}: {line.strip()}"
        for path in Path(cdkit.__file__).parent.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if bare.search(line) or ("shlex" in line and path.name != "formatting.py")
    ]
    assert offenders == []
