"""Templates of pages, cards and pipelines: how they are read, what they escape with, and how their text is tidied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.formatting import code_block, code_span, duration_text, markdown_text, size_text

if TYPE_CHECKING:
    from jinja2 import Environment


def template_environment(folder: Path) -> Environment:
    """Jinja with autoescape for .html templates; Markdown templates escape with `md`, `code` and `fenced`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "md": markdown_text,
        "code": code_span,
        "fenced": code_block,
        "seconds": lambda seconds: "–" if seconds is None else duration_text(seconds),
        "size": lambda number: size_text(number) if number else "–",
        "value": value_text,
        "clock": clock_text,
    }
    return made


def markdown_of(text: str) -> str:
    """Markdown of a template without the gaps that its conditions leave."""
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def value_text(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {value_text(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(value_text(item) for item in value)
    return "–" if value is None else str(value)


def clock_text(moment: str) -> str:
    """An ISO time to the minute, in UTC: `2026-11-24 14:04`."""
    return moment.replace("T", " ")[:16]
