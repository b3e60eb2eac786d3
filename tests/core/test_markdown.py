"""Text that Markdown shows as it is, checked with a Markdown parser."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cdkit.core.formatting import code_block, code_span, markdown_text

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
