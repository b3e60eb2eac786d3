"""The README of a set says its prompts, and nothing that is in them is markup."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from cdkit.retrieval.funnel import Funnel, write_card


@pytest.mark.parametrize(
    "prompt",
    ["<img src=x onerror=alert(1)> a dog", "a dog\n---\n<b>", "a [dog](http://a.test)", "```\n# a dog", "a {dog}"],
)
def test_a_prompt_is_text(tmp_path: Path, prompt: str) -> None:
    write_card(tmp_path / "README.md", [prompt, "a cat"], Funnel(9, 0.85, 9, 9, 9, 9, 9, 9, {}))
    text = (tmp_path / "README.md").read_text()
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert front.startswith("configs:")
    blocks = MarkdownIt("commonmark").parse(body)
    assert blocks[1].content.startswith("Regularization set: ")
    assert [block.type for block in blocks if block.type in ("html_block", "fence", "hr", "heading_open")] == [
        *("heading_open", "fence")
    ]
    kinds = {child.type for child in blocks[1].children or []}
    assert kinds <= {"text", "text_special"}
    assert "".join(child.content for child in blocks[1].children or []) == (
        f"Regularization set: {' '.join(prompt.split())}, a cat"
    )
