"""User names and passwords in URLs: what cdkit stores, logs or prints has none."""

from __future__ import annotations

import re
from collections.abc import Mapping
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
