"""Where words go that stand behind a repeatable option: to the option only where they can be nothing else."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cdkit.cli.app import assemble, execute_command


def _parsed(line: str) -> dict[str, Any]:
    """What a command line sets, by parameter; nothing is run."""
    name, *rest = shlex.split(line)
    found: Any = typer.main.get_command(assemble(name)).commands[name]
    while hasattr(found, "commands"):
        found = found.commands[rest.pop(0)]
    return dict(found.make_context(name, rest).params)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("merge --captions embedded a b --out m", {"captions": ["embedded"], "deltas": ["a", "b"], "out": Path("m")}),
        ("merge a --captions embedded b --out m", {"captions": ["embedded"], "deltas": ["a", "b"]}),
        ("merge a b --out m --captions x.csv --captions y.csv", {"captions": ["x.csv", "y.csv"]}),
        ("merge --out m --captions x.csv d1 d2 d3", {"captions": ["x.csv"], "deltas": ["d1", "d2", "d3"]}),
        ("merge --captions a.csv b.csv d1 d2 --out m", {"captions": ["a.csv"], "deltas": ["b.csv", "d1", "d2"]}),
        ("merge --captions=a.csv d1 d2 --out m", {"captions": ["a.csv"], "deltas": ["d1", "d2"]}),
        (
            "retrieve --exclude-like photos index 'a dog' --out s",
            {"exclude_like": ["photos"], "index": "index", "prompts": ["a dog"]},
        ),
        (
            "retrieve index 'a dog' --allow-host h:80 'a cat' --count 3 'a cow' --out s",
            {"allow_host": ["h:80"], "prompts": ["a dog", "a cat", "a cow"], "count": 3},
        ),
        (
            "class-images --out s --also-write diffusers -- -5 --out",
            {"also_write": ["diffusers"], "prompts": ["-5", "--out"]},
        ),
        (
            "class-images --also-write webdataset 'a star' --out s",
            {"also_write": ["webdataset"], "prompts": ["a star"]},
        ),
        ("class-images 'a star' --also-write webdataset 'a mug' --out s", {"prompts": ["a star", "a mug"]}),
        ("delta import --token '<new1>' a.bin b.bin --out d", {"tokens": ["<new1>"], "files": ["a.bin", "b.bin"]}),
        ("run --set a=1 quickstart", {"set": ["a=1"], "pipeline": "quickstart"}),
        ("run quickstart --set a=1 b=2 --force", {"set": ["a=1", "b=2"], "force": True}),
        ("run --force quickstart --set a=1 b=2", {"set": ["a=1", "b=2"]}),
        ("pipeline validate --set a=1 -- quickstart", {"set": ["a=1"], "pipeline": "quickstart"}),
        ("index add mine --captions a.csv b.csv", {"captions": ["a.csv", "b.csv"], "index": Path("mine")}),
        ("index add --captions a.csv mine", {"captions": ["a.csv"], "index": Path("mine")}),
        ("index build --captions a.csv b.csv --out o", {"captions": ["a.csv", "b.csv"], "out": Path("o")}),
        ("train --concept a=b c=d --delta x y --out o", {"concepts": ["a=b", "c=d"], "delta": ["x", "y"]}),
        ("init --word= --base embedded", {"word": [""], "base": "embedded"}),
        ("inspect benchmark set.json --word 'a dog' pet", {"word": ["a dog"], "concept": "pet"}),
    ],
)
def test_where_words_go(line: str, expected: dict[str, Any]) -> None:
    parsed = _parsed(line)
    assert {name: parsed[name] for name in expected} == expected


def test_a_word_behind_an_option_with_one_value_is_not_the_options() -> None:
    with pytest.raises(typer.TyperException, match="unexpected extra argument"):
        _parsed("index build --captions a.csv b.csv --out o c.csv")


def test_a_path_is_not_taken_for_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "one photo", "two"):
        Path(name).mkdir()
    for line in (
        "retrieve index 'a dog' --exclude-like 'one photo' two --out s",
        "retrieve --exclude-like two mine 'one photo' --out s",
    ):
        assert execute_command(shlex.split(line)) == 2
        printed = capsys.readouterr().err
        assert "would be one of PROMPTS: here each option takes one value." in printed
        assert "Repeat the option: --exclude-like " in printed
    assert "'one photo'\n" in printed
