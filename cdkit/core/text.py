"""Texts as CLIP reads them: cleaned captions and their identity, and words that stand in a text as words.

Import, encoders and token counting all clean with the one function here.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

ID_BITS = 63
_ID_MASK = (1 << ID_BITS) - 1
# Words of printable ASCII in which no HTML entity can begin: `&` only before a blank, another `&`, or the end.
# Nothing that open_clip's cleaning does, ftfy included, changes such text beyond blanks and lower case. RE2 syntax,
# because DuckDB evaluates them; they are compared with clean_caption in the tests.
_WORD = "(?:[!-%'-~]+&*|&+)"
TIDY_PATTERN = f"{_WORD}(?: {_WORD})*"
PLAIN_PATTERN = f"[ \\t\\n\\r]*(?:{_WORD}(?:[ \\t\\n\\r]+{_WORD})*[ \\t\\n\\r]*)?"
_TIDY = re.compile(TIDY_PATTERN)
# Letters and marks of web captions that may stand alone between ASCII; what they stand for in a cleaned caption is at
# most a straight quote or the lower case that DuckDB gives them too.
_MARKS = "£©®°–—•…€™"
CURLED, STRAIGHT = "‘’“”", "''\"\""
_ASIDE = "".join(map(chr, range(0xC0, 0x100))) + _MARKS + CURLED
_KNOWN_STEPS = (
    *("unescape_html", "remove_terminal_escapes", "fix_encoding", "restore_byte_a0", "replace_lossy_sequences"),
    *("decode_inconsistent_utf8", "fix_c1_controls", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes"),
    *("fix_line_breaks", "fix_surrogates", "remove_control_chars", "normalization", "max_decode_length", "explain"),
)


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: half of a surrogate pair stands for a byte that is no text, or for nothing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_caption(text: str) -> str:
    """The caption as CLIP's tokenizer sees it, equal to open_clip's `_clean_lower`.

    ftfy's repairs, HTML-unescape twice, whitespace collapsed and trimmed, lower case; may be empty.
    """
    if _TIDY.fullmatch(text):
        return text.lower()
    if _simple().fullmatch(text):
        return " ".join(text.translate(_STRAIGHTENED).split()).lower()
    fixed = _fixed_if_simple(text)
    if fixed is None:
        import ftfy

        fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(fixed.split()).lower()


def _fixed_if_simple(text: str) -> str | None:
    """ftfy.fix_text(text) where at most its quotation marks change, three times as fast; None for any other text.

    ftfy repeats its steps until nothing changes: text is done when it does not look like mojibake, before and after
    the quotes are straightened, and consists of characters that no other step touches.
    """
    pattern = _untouched_characters()
    if pattern is None or not pattern.fullmatch(text) or not unicodedata.is_normalized("NFC", text):
        return None
    from ftfy.badness import is_bad
    from ftfy.fixes import uncurl_quotes

    straight: str = uncurl_quotes(text)
    return None if is_bad(text) or (straight != text and is_bad(straight)) else straight


@cache
def simple_pattern() -> str:
    """Texts whose cleaning is straightening quotes, collapsing blanks and lower case; RE2 syntax, as PLAIN_PATTERN.

    Beside ASCII they may hold accented letters, quotes and a few marks, none of them beside another: mojibake is made
    of such neighbours. Which ones, this ftfy is asked.
    """
    pattern = _untouched_characters()
    if pattern is None:
        return PLAIN_PATTERN
    from ftfy.badness import is_bad

    ascii_text = "".join(map(chr, range(0x20, 0x7F)))
    alone = [
        char
        for char in _ASIDE
        if pattern.fullmatch(char.translate(_STRAIGHTENED))
        and not is_bad("".join(f"{before}{char}{after}" for before in ascii_text for after in " aZ0-"))
        and not is_bad("".join(f"{before}{char}{after}" for before in " aZ0-" for after in ascii_text))
    ]
    marks = f"[{re.escape(''.join(alone))}]"
    letters = "[!-%'-~]"
    word = f"(?:(?:{marks}?{letters})+{marks}?&*|{marks}&*|&+)"
    return f"[ \\t\\n\\r]*(?:{word}(?:[ \\t\\n\\r]+{word})*[ \\t\\n\\r]*)?"


_STRAIGHTENED = str.maketrans(CURLED, STRAIGHT)


@cache
def _simple() -> re.Pattern[str]:
    return re.compile(simple_pattern())


@cache
def _untouched_characters() -> re.Pattern[str] | None:
    """Text of characters that ftfy's character by character steps leave alone, quotes aside and without `&`.

    None when this ftfy has steps we do not know.
    """
    import ftfy
    from ftfy import fixes

    if ftfy.TextFixerConfig._fields != _KNOWN_STEPS:
        return None
    steps = (
        fixes.fix_c1_controls,
        fixes.fix_latin_ligatures,
        fixes.fix_character_width,
        fixes.fix_line_breaks,
        fixes.remove_control_chars,
    )
    characters = [chr(code) for code in range(0xA1, 0x3000)]
    # Spaces between them keep the steps' many-character rules out of it.
    stepped = [step(" ".join(characters)).split(" ") for step in steps]
    if any(len(after) != len(characters) for after in stepped):
        return None
    untouched = [ord(char) for char, *after in zip(characters, *stepped, strict=True) if set(after) == {char}]
    return re.compile(f"[ -%'-~{_ranges(untouched)}]*")


def _ranges(codes: Sequence[int]) -> str:
    """Ascending code points as the inside of a character class."""
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if code + 1 != after]
    return "".join(f"\\u{start:04x}-\\u{end:04x}" for start, end in zip(starts, ends, strict=True))


def caption_id(cleaned: str) -> int:
    """The stable id of a cleaned caption: the first 8 bytes of its sha256, & 2⁶³−1."""
    return digest_halves(cleaned)[0]


def digest_halves(cleaned: str) -> tuple[int, int]:
    """The caption's id and the next 63 bits of its sha256, which tell two captions with one id apart."""
    # A lone surrogate can only come from a Python string that was never UTF-8; it still has to hash to something.
    digest = hashlib.sha256(cleaned.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") & _ID_MASK, int.from_bytes(digest[8:16], "big") & _ID_MASK


def clean_captions(texts: Sequence[str]) -> list[str]:
    """clean_caption of every text, each distinct one cleaned once."""
    return [_cached_clean(text) for text in texts]


@lru_cache(maxsize=1 << 16)
def _cached_clean(text: str) -> str:
    return clean_caption(text)


# What cdkit and the public Custom Diffusion scripts call modifier tokens: <new1>, <my-dog>.
MODIFIER_TOKEN = re.compile(r"<[^<>\s]+>")


def whole_words(*words: str) -> re.Pattern[str]:
    """Finds any of some words or phrases where it stands on its own, in any case, the longest first.

    `sks` is not in `desks` or `sks2`. `<new1>` ends by itself, so that a letter may touch it as tokenizers allow, but
    it is not in `<new1>_1`, which is what the second row of a token is called. Blanks are as good as each other.
    """
    if not words:
        return re.compile(r"(?!)")
    return re.compile("|".join(map(_alone, sorted(words, key=len, reverse=True))), re.IGNORECASE)


def _alone(word: str) -> str:
    parts = word.split()
    inside = r"\s+".join(map(re.escape, parts))
    before = r"(?<!\w)" if re.match(r"\w", inside) else ""
    after = r"(?!\w)" if re.search(r"\w$", inside) else r"(?!_\d)"
    return f"{before}{inside}{after}" if parts else r"(?!)"


def naming(written: str, word: str, category: str) -> str | None:
    """A caption with `word` before the first `category` in it; as it is where it has the word; None without both.

    `{}` in a caption stands for the two together.
    """
    if "{}" in written:
        return written.replace("{}", f"{word} {category}".strip())
    if not word or whole_words(word).search(written):
        return written
    match = whole_words(category).search(written)
    return None if match is None else f"{written[: match.start()]}{word} {written[match.start() :]}"


def one_line(text: str) -> str:
    """A text without anything that `str.splitlines` would split it at."""
    return " ".join(text.split())


def same_word(word: str) -> str:
    """What two spellings of a word have in common for a tokenizer, which tells no upper from lower case."""
    return word.lower()
