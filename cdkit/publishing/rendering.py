"""Fills the templates: HTML with every text escaped, and Markdown in which no caption can become markup."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.markdown import code_block, code_span, markdown_text

if TYPE_CHECKING:
    from jinja2 import Environment

    from cdkit.publishing.report import Page

TEMPLATES = Path(__file__).parent


@cache
def environment() -> Environment:
    """Jinja with autoescape for .html templates; Markdown templates escape with `md`, `code` and `fenced`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(enabled_extensions=("html.jinja",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "md": markdown_text,
        "code": code_span,
        "fenced": code_block,
        "seconds": duration_text,
        "size": size_text,
        "value": value_text,
        "clock": clock_text,
    }
    return made


def render_page(page: Page) -> str:
    """The whole HTML page."""
    return environment().get_template("report.html.jinja").render(page=page, run=page.run)


def render_text(page: Page) -> str:
    """The same in Markdown, without pictures."""
    text = environment().get_template("report.md.jinja").render(page=page, run=page.run)
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


def duration_text(seconds: float | None) -> str:
    """`3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def size_text(number: float | None) -> str:
    """A byte count: `12.3 MB`."""
    if not number:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
