"""JSON as cdkit writes it: strict, whatever the numbers and the names are."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cdkit.core.formatting import (
    URL_USERINFO,
    code_block,
    code_span,
    command_line,
    json_text,
    markdown_text,
    redacted,
    without_credentials,
    without_userinfo,
)
from cdkit.core.storage import read_json, write_json


def strict(text: str) -> Any:
    """Read JSON as a reader does that knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text.encode("utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (
            {"a": [1.5, float("inf")], "b": (float("-inf"), {"c": float("nan")})},
            {"a": [1.5, None], "b": [None, {"c": None}]},
        ),
        ({float("nan"): 1, 2.5: float("nan")}, {"null": 1, "2.5": None}),
        ([True, None, 3, 1e300, "NaN"], [True, None, 3, 1e300, "NaN"]),
    ],
)
def test_numbers_that_are_none_are_null(value: Any, expected: Any) -> None:
    assert strict(json_text(value)) == expected
    assert strict(json_text(value, indent=2, ascii_only=True)) == expected


def test_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    text = json_text({"file": name, "note": "sch\u00f6n"})
    assert strict(text)["file"] == name
    write_json(tmp_path / "a.json", {"file": name, "score": float("nan")})
    assert read_json(tmp_path / "a.json") == {"file": name, "score": None}


def test_text_is_written_as_it_is_and_the_rest_as_ever() -> None:
    value = {"b": "sch\u00f6n", "a": [1, 2.5]}
    assert json_text(value) == '{"b": "sch\u00f6n", "a": [1, 2.5]}'
    assert json_text(value, sort_keys=True, ascii_only=True) == json.dumps(value, sort_keys=True)
    assert json_text(value, compact=True) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert json_text({"a": {1}}, default=sorted) == '{"a": [1]}'
    with pytest.raises(TypeError):
        json_text({"a": {1}})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_is_strict_json(value: Any) -> None:
    strict(json_text(value))


URLS = [
    ("http://user:secret@a.test/x.jpg", "http://a.test/x.jpg"),
    ("HTTPS://secret@a.test:8080", "HTTPS://a.test:8080"),
    ("http://user:se@cr:et@a.test/", "http://a.test/"),
    ("http://us er:secret'\"@a.test/", "http://a.test/"),
    ("http://user:secret@[photo.jpg", "http://[photo.jpg"),
    ("http:////user:secret@a.test/", "http:////a.test/"),
    ("http:\\\\user:secret@a.test/", "http:\\\\a.test/"),
    (" ftp://user:secret@a.test/", " ftp://a.test/"),
    ("//user:secret@a.test/", "//a.test/"),
    ("http://a.test/@user/x.jpg", "http://a.test/@user/x.jpg"),
    ("http://a.test?mail=me@a.test", "http://a.test?mail=me@a.test"),
    ("http://a.test#@b", "http://a.test#@b"),
    ("me@a.test", "me@a.test"),
    ("", ""),
]


@pytest.mark.parametrize(("url", "expected"), URLS)
def test_a_url_loses_what_stands_before_its_host(url: str, expected: str) -> None:
    assert without_userinfo(url) == expected
    assert without_userinfo(expected) == expected
    assert pc.replace_substring_regex(pa.array([url]), URL_USERINFO, r"\1").to_pylist() == [expected]


def test_texts_lose_the_credentials_of_every_url_in_them() -> None:
    text = "proxy http://user:secret@a:3128, then 'https://b@c/d' (write to me@a.test, see http://a/@me)"
    assert (
        without_credentials(text) == "proxy http://a:3128, then 'https://c/d' (write to me@a.test, see http://a/@me)"
    )
    assert redacted({"vars": {"proxy": "http://u:p@a:1", "n": 3}, "list": ["s3://k:s@b", None, True]}) == {
        "vars": {"proxy": "http://a:1", "n": 3},
        "list": ["s3://b", None, True],
    }


PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
MARKUP = st.text(st.sampled_from("ab 1.)-+=*_`~#|<>&;!()[]\\\"'/:\n\t$"), max_size=24)


def shown(text: str, begin: str = "") -> str:
    """The text that a reader sees of Markdown; fails when any of it is more than text in a paragraph or heading."""
    blocks = PARSER.parse(begin + text)
    assert len(blocks) <= 3
    inline: list[Token] = [block for block in blocks if block.type == "inline"]
    children = [child for block in inline for child in block.children or []]
    assert {child.type for child in children} <= {"text", "text_special"}
    return "".join(child.content for child in children)


@given(MARKUP)
@example("- a")
@example("1. a")
@example("===")
@example("---")
@example("# a")
@example("<script>alert(1)</script>")
@example("&lt;b&gt; &amp;amp; &#60;")
@example("[a](javascript:alert(1)) ![x](http://a/x.png) <http://a>")
@example("``` a")
@example("a\n\n    b")
def test_text_is_shown_as_it_is(text: str) -> None:
    line = " ".join(text.split())
    assert shown(markdown_text(text)) == line
    assert shown(markdown_text(text), "# Set: ").strip() == f"Set: {line}".strip()


def test_nothing_in_a_text_ends_a_table_cell() -> None:
    table = f"| a | b |\n|---|---|\n| {markdown_text('x | y')} | {code_span('p | `q`')} |\n"
    cells = [block.content for block in PARSER.parse(table) if block.type == "inline"]
    assert len(cells) == 4


def test_text_cannot_hide_or_turn_what_stands_around_it() -> None:
    assert markdown_text("a\u202eb\u2066c\0d\x1b[31me") == r"abcd\[31me"


@given(st.text(st.sampled_from("ab `<>&*\\"), min_size=1, max_size=12))
@example("`")
@example("``a`")
def test_code_shows_backticks_too(text: str) -> None:
    line = " ".join(text.split())
    [paragraph] = [block for block in PARSER.parse(f"x {code_span(text)} y") if block.type == "inline"]
    codes = [child.content for child in paragraph.children or [] if child.type == "code_inline"]
    assert codes == ([line] if line else codes)


@pytest.mark.parametrize("text", ["a", "```\n<b>", "````\n# x\n```", "~~~"])
def test_nothing_in_a_block_ends_it(text: str) -> None:
    [block] = PARSER.parse(code_block(text, "yaml"))
    assert (block.type, block.info, block.content) == ("fence", "yaml", f"{text}\n")


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
