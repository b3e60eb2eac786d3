"""Cleaning equals open_clip's, in Python and in SQL, on real captions and on anything hypothesis thinks of."""

from __future__ import annotations

import hashlib
import html
import re

import duckdb
import ftfy
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.captions.digests import digests_of
from cdkit.core.text import (
    _ASIDE,
    CURLED,
    PLAIN_PATTERN,
    STRAIGHT,
    TIDY_PATTERN,
    _fixed_if_simple,
    caption_id,
    clean_caption,
    clean_captions,
    digest_halves,
    simple_pattern,
    whole_words,
)
from tests.support import material

# What real captions are made of, and what ftfy and html.unescape react to.
PIECES = st.sampled_from(
    [
        *(
            "a",
            "Z",
            "é",
            "É",
            "İ",
            "ς",
            "Σ",
            "ß",
            "ﬁ",
            "Ａ",
            "“",
            "”",
            "’",
            "…",
            "–",
            "日本",
            "한",
            "🐕",
            "\u0301",
            "\u200b",
        ),
        *(
            " ",
            "  ",
            "\t",
            "\n",
            "\r",
            "\r\n",
            "\x0b",
            "\x0c",
            "\x1c",
            "\x85",
            "\xa0",
            "\u2028",
            "\u3000",
            "\x00",
            "\x1b[0m",
        ),
        *("&", "&&", "& ", "&amp;", "&amp;amp;", "&lt", "&#39;", "&#x27", "&nbsp;", "&copy", "&T", "<b>", ";", "#"),
        *("Ã©", "â€™", "Ã¼", "Â ", "ÃƒÂ©", "\x80", "\x9d", "ï»¿", "\ufeff", "\ufffd"),
    ]
)
TEXTS = st.one_of(
    st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join), st.text(st.characters(max_codepoint=0x24F))
)


def reference(text: str) -> str:
    """open_clip's `_clean_lower`, written out."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.split()).strip().lower()


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_cleaning_is_open_clips(text: str) -> None:
    assert clean_caption(text) == reference(text)


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXTS, max_size=60))
def test_sql_patterns_only_match_text_that_sql_may_clean(texts: list[str]) -> None:
    texts = [text for text in texts if text.isprintable() or text.isascii()]
    rows = duckdb.execute(
        "SELECT t, regexp_full_match(t, $tidy), regexp_full_match(t, $plain), "
        "lower(trim(regexp_replace(t, '[ \\t\\n\\r]+', ' ', 'g'))) FROM (SELECT unnest($texts::VARCHAR[]) t)",
        {"tidy": TIDY_PATTERN, "plain": PLAIN_PATTERN, "texts": texts},
    ).fetchall()
    for text, tidy, plain, in_sql in rows:
        assert tidy == bool(re.fullmatch(TIDY_PATTERN, text))
        if tidy:
            assert text.lower() == reference(text)
        if plain:
            assert in_sql == reference(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from([*" \t&ab'ZO0-\"", *_ASIDE]), max_size=12), max_size=40))
def test_texts_with_marks_that_stand_alone_are_cleaned_in_sql(texts: list[str]) -> None:
    pattern = simple_pattern()
    cleaned = "lower(trim(regexp_replace(translate(t, $curled, $straight), '[ \\t\\n\\r]+', ' ', 'g')))"
    rows = duckdb.execute(
        f"SELECT t, regexp_full_match(t, $simple), {cleaned} FROM (SELECT unnest($texts::VARCHAR[]) t)",
        {"simple": pattern, "curled": CURLED, "straight": STRAIGHT, "texts": texts},
    ).fetchall()
    for text, simple, in_sql in rows:
        assert simple == bool(re.fullmatch(pattern, text))
        if simple:
            assert in_sql == reference(text)


def test_web_captions_are_simple_and_mojibake_is_not() -> None:
    simple = ["Café “Müller” – 20° © 2019", "São Paulo’s finest", "salt & pepper", "ÉCOLE • Genève"]
    assert all(re.fullmatch(simple_pattern(), text) for text in simple)
    assert not any(re.fullmatch(simple_pattern(), text) for text in ("schÃ¶n", "doesnâ€™t", "Ã  la", "AT&T é"))


def test_ampersands_before_a_blank_are_cleaned_in_sql_and_entities_are_not() -> None:
    assert re.fullmatch(TIDY_PATTERN, "salt & pepper &")
    assert not re.fullmatch(PLAIN_PATTERN, "salt &amp; pepper")
    assert not re.fullmatch(PLAIN_PATTERN, "AT&T")


@pytest.mark.real
def test_real_captions_are_cleaned_as_open_clip_does() -> None:
    checked = 0
    for path in material.caption_files():
        texts = pc.unique(pq.read_table(path, columns=["TEXT"])["TEXT"].drop_null())
        simple = pc.match_substring_regex(texts, "^[ -%'-~]*$")
        for text in texts.filter(pc.invert(simple))[::40].to_pylist():
            assert clean_caption(text) == reference(text)
            checked += 1
    assert checked > 1000


@pytest.mark.real
@pytest.mark.slow
def test_every_real_caption_is_cleaned_as_open_clip_does() -> None:
    from open_clip.tokenizer import _clean_lower  # type: ignore[attr-defined]

    for path in material.caption_files():
        for text in pc.unique(pq.read_table(path, columns=["TEXT"])["TEXT"]).drop_null().to_pylist():
            assert clean_caption(text) == _clean_lower(text)


def test_the_short_cut_past_ftfy_is_taken_and_gives_the_same() -> None:
    texts = ["Café “Müller”", "São Paulo’s", "Łódź, Polska", "Ελλάδα", "Привет"]
    for text in texts:
        assert _fixed_if_simple(text) == ftfy.fix_text(text)
    assert _fixed_if_simple("schÃ¶n") is None


def test_caption_id_is_the_start_of_the_sha256() -> None:
    digest = hashlib.sha256(b"a photo of a dog").digest()
    assert caption_id("a photo of a dog") == int.from_bytes(digest[:8], "big") & (2**63 - 1)
    assert digest_halves("a photo of a dog")[1] == int.from_bytes(digest[8:16], "big") & (2**63 - 1)


def test_a_batch_is_cleaned_like_its_texts() -> None:
    texts = ["A  Dog", "Caf&eacute;", "A  Dog", ""]
    assert clean_captions(texts) == ["a dog", "café", "a dog", ""]


def test_digests_from_sql_and_from_python_agree() -> None:
    hashed = hashlib.sha256(b"a dog").hexdigest()
    digest = pa.array([None, hashed, None, None, hashed])
    caption = pa.array([None, "A dog", "&nbsp;", "A\u00a0Dog", "a dog"])
    ids, checks, blank = digests_of(digest[1:], caption[1:])
    assert blank.tolist() == [False, True, False, False]
    assert ids.tolist() == [caption_id("a dog"), 0, caption_id("a dog"), caption_id("a dog")]
    assert checks.tolist()[0] == checks.tolist()[3] == digest_halves("a dog")[1]


@pytest.mark.parametrize(
    ("words", "text", "found"),
    [
        (["sks"], "desks asks sks2 sks_ ßsks", []),
        (["sks"], "sks, SKS's “sks” sks-like", ["sks", "SKS", "sks", "sks"]),
        (["<a>"], "a<a>b <A> <ab> <a>_1", ["<a>", "<A>"]),
        (["<a>", "<a>_1"], "<a> <a>_1 <a>_12", ["<a>", "<a>_1"]),
        (["teddy bear", "bear"], "Teddy \n bear, bearing bear", ["Teddy \n bear", "bear"]),
        (["c++", "c"], "c++ c C#", ["c++", "c", "C"]),
        ([], "anything", []),
        (["", " "], "anything", []),
    ],
)
def test_words_are_found_where_they_stand_alone(words: list[str], text: str, found: list[str]) -> None:
    assert whole_words(*words).findall(text) == found
