"""The README of a set says its prompts, and nothing that is in them is markup."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from cdkit.retrieval.funnel import Funnel
from cdkit.retrieval.set_folder import drawn_card, retrieved_card


@pytest.mark.parametrize(
    "prompt",
    ["<img src=x onerror=alert(1)> a dog", "a dog\n---\n<b>", "a [dog](http://a.test)", "```\n# a dog", "a {dog}"],
)
def test_a_prompt_is_text(prompt: str) -> None:
    prompts = [prompt, "a cat"]
    retrieved = retrieved_card(prompts, Funnel(9, 0.85, 9, 9, 9, 9, 9, 9, {}), [])
    for title, card, blocks_beside in (
        ("Regularization set: ", retrieved, ["heading_open", "fence"]),
        ("Class images: ", drawn_card(prompts, 9, "embedded"), ["heading_open"]),
    ):
        front, body = card.removeprefix("---\n").split("\n---\n", 1)
        assert front.startswith("configs:")
        blocks = MarkdownIt("commonmark").parse(body)
        named = [block.type for block in blocks if block.type in ("html_block", "fence", "hr", "heading_open")]
        assert named == blocks_beside
        kinds = {child.type for child in blocks[1].children or []}
        assert kinds <= {"text", "text_special"}
        heading = "".join(child.content for child in blocks[1].children or [])
        assert heading == f"{title}{' '.join(prompt.split())}, a cat"
