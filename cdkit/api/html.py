"""What notebooks show of a result: a grid of its pictures, or a table; every text escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 128


def picture_grid(title: str, pictures: Sequence[tuple[Callable[[], Image.Image], str]], total: int) -> str:
    """The pictures, small, with their captions; `total` is how many there are."""
    figures = "".join(_figure(opened(), caption) for opened, caption in pictures)
    more = f"<p>and {total - len(pictures):,} more</p>" if total > len(pictures) else ""
    return f'<p><code>{escape(title)}</code></p><div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>{more}'


def _figure(picture: Image.Image, caption: str) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, format="PNG")
    data = base64.b64encode(content.getvalue()).decode("ascii")
    text = escape(caption)
    return (
        f'<figure style="margin:0;width:{SIDE}px"><img src="data:image/png;base64,{data}" alt="{text}" '
        f'style="width:{SIDE}px"><figcaption style="font-size:smaller">{text}</figcaption></figure>'
    )


def shown_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a title."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<p><code>{escape(title)}</code></p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
