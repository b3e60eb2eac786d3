"""How values are written down: JSON, sizes, times, shell commands, Markdown, names, and URLs without passwords."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# What stands between `//` and the last `@` before the path; RE2 (Arrow, DuckDB) reads the same pattern.
URL_USERINFO = r"^(\s*(?:[A-Za-z][A-Za-z0-9+.-]*:)?[/\\]{2,})[^/?#]*@"
_WHOLE_URL = re.compile(URL_USERINFO)
_IN_TEXT = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:[/\\]{2,})[^\s/?#]*@")


def without_userinfo(url: str) -> str:
    """A URL without its user name and password; any other text as it is, also what no parser takes for a URL."""
    return _WHOLE_URL.sub(r"\1", url)


def without_credentials(text: str) -> str:
    """A text for people in which every URL has lost its user name and password."""
    return _IN_TEXT.sub(r"\1", text)


def redacted(value: Any) -> Any:
    """A JSON value, all texts in it without credentials."""
    if isinstance(value, str):
        return without_credentials(value)
    if isinstance(value, Mapping):
        return {key: redacted(item) for key, item in value.items()}
    return [redacted(item) for item in value] if isinstance(value, list | tuple) else value


def json_text(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ascii_only: bool = False,
    compact: bool = False,
    default: Callable[[Any], Any] | None = None,
) -> str:
    """`value` as JSON that UTF-8 can hold: numbers that are none as null, lone surrogates (of paths) as escapes.

    compact: without blanks; default: what to write of an object that JSON does not know.
    """
    separators = (",", ":") if compact else None

    def dumped(content: Any, *, ascii_only: bool) -> str:
        return json.dumps(
            content,
            indent=indent,
            sort_keys=sort_keys,
            ensure_ascii=ascii_only,
            separators=separators,
            default=default,
            allow_nan=False,
        )

    try:
        text = dumped(value, ascii_only=ascii_only)
    except ValueError:
        value = finite(value)
        text = dumped(value, ascii_only=ascii_only)
    try:
        text.encode()
    except UnicodeEncodeError:
        return dumped(value, ascii_only=True)
    return text


def finite(value: Any) -> Any:
    """A copy of `value` in which every float that is no number, or infinite, is None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {finite(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def size_text(number: float) -> str:
    """A byte count for people: `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def duration_text(seconds: float) -> str:
    """A time for people: `3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def first_line(error: BaseException) -> str:
    """What an error of a library says first, its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


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


def printable(name: str | Path) -> str:
    r"""A file's name as it can be shown and written anywhere: bytes that are not UTF-8, and controls, as `\x07`."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def command_line(*words: object) -> str:
    """Words as one line that a shell takes apart into the very same words; a path is never taken for an option."""
    return " ".join(_word(word) for word in words)


def _word(word: object) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(character: str) -> str:
    """A character between `$'` and `'`, as bash and zsh read it; bytes that are no UTF-8 stay what they are."""
    code = ord(character)
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"
