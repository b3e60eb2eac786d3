"""Markdown in which no prompt, caption or name can become markup: the one place that escapes it."""

from __future__ import annotations

import re
from typing import Any

_MARKUP = re.compile(r"([\\`*_\[\]|#~$])")
# What begins a list, a heading underlined or a rule, when it stands first.
_FIRST = re.compile(r"^(?:(?=[-+](?:\s|$))|(?=[-=]+$)|(\d+)(?=[.)](?:\s|$)))")
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def markdown_text(value: Any) -> str:
    """Text that Markdown shows as it is: on one line, markup and HTML escaped, nothing that hides or turns text."""
    line = _UNSEEN.sub("", " ".join(str(value).split()))
    escaped = _FIRST.sub(r"\1\\", _MARKUP.sub(r"\\\1", line))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(value: Any) -> str:
    """Text as inline code, whatever backticks it holds itself; bars are escaped, as table cells need it."""
    line = _UNSEEN.sub("", " ".join(str(value).split())).replace("|", r"\|")
    fence = _fence(line, 1)
    # Between backticks of its own a space is needed, and taken off by the reader.
    padding = " " if line[:1] == "`" or line[-1:] == "`" or not line else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def code_block(text: str, language: str = "") -> str:
    """Text as a block of code that nothing in it can end."""
    fence = _fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _fence(text: str, least: int) -> str:
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1)
