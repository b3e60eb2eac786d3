"""JSON as cdkit writes it, everywhere: strict, so that every reader takes it. NaN and Infinity become null."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


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
