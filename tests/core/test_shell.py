"""Commands that are shown can be pasted: a shell takes the very words from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdkit.core.formatting import command_line


def _words(line: str) -> list[bytes]:
    """What bash makes of a line."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return printed.split(b"\0")[:-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=3))
@example(['a "dog" $(rm -rf ~) `x` it\'s\nnew', "~/x", "a b", "", "!!", "*", "\x1b[31m", "\u202e", "\\n"])
def test_bash_reads_back_every_word(words: list[str]) -> None:
    line = command_line(*words)
    assert line.isprintable()
    assert _words(line) == [word.encode() for word in words]


@pytest.mark.parametrize("name", ["two words", "it's", "$HOME", "a\nb", "-out", "--out", "犬", "a\udcff", "a;b"])
def test_a_path_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    [word] = _words(command_line(Path(name)))
    assert not word.startswith(b"-")
    assert Path(word.decode(errors="surrogateescape")).samefile(Path(name))


def test_simple_words_stay_as_they_are() -> None:
    assert command_line("cdkit", "run", Path("runs/a.yaml"), "--set", "a=1") == "cdkit run runs/a.yaml --set a=1"
