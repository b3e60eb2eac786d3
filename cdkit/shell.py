"""Commands as they are shown, in hints, reports and cards: what is pasted into a shell is what was meant."""

from __future__ import annotations

import shlex
from pathlib import Path


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
