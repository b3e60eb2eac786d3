"""Counting words first gives, token for token, what tokenising every caption gives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from cdkit.core.text import clean_captions
from cdkit.tokens.count import count_tokens, count_words
from cdkit.tokens.vocabulary import Tower, load_towers, tower_of
from tests.support import material
from tests.tokens.conftest import write_classic_tokenizer

ROUGH = [
    "a photo of a dog",
    "it's the dogs' dog, isn't it?",
    "don't we'll you're i've i'm he'd",
    "<|endoftext|> and <|startoftext|>x<|endoftext|>",
    "snow-white 12345 ½ ² ④ 二つの犬 собака 🐕‍🦺 👩‍👩‍👧",
    "e\u0301te\u0301 été ǆ ﬁ ŉ ß ς σ İi",
    "\u0301leading mark \u200bzero\u200bwidth\u00a0nbsp\u2003wide\u3000cjk",
    "wow!! !!! ! a!b <3 http://x.y/z?q=1&amp;b",
    "",
    " ",
    "tab\tand\nnewline",
]
# Characters on which normalizers and word patterns might differ between a caption and its words.
_PIECES = st.sampled_from(
    [
        "dog",
        "'s",
        "'ll",
        "1",
        "!",
        "<|endoftext|>",
        "\u0301",
        "é",
        "ς",
        "İ",
        "\u1e9b\u0323",
        "犬",
        "²",
        "\u200d",
        "🐕",
        "_",
    ]
)
_CAPTIONS = st.lists(
    st.lists(_PIECES | st.characters(exclude_categories=["Cs"]) | st.just(" "), max_size=12).map("".join)
)


def slowly(captions: list[str], tokenizer: CLIPTokenizer, size: int) -> np.ndarray:
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(captions), 5_000):
        for ids in tokenizer(captions[start : start + 5_000], add_special_tokens=False, verbose=False)["input_ids"]:
            np.add.at(counts, ids, 1)
    return counts


def test_equals_tokenising_every_caption(clip: Tower, clip_tokenizer: CLIPTokenizer) -> None:
    counts = count_tokens(ROUGH, clip)
    assert clip.splits_at_spaces
    assert counts.sum() > 100
    np.testing.assert_array_equal(counts, slowly(ROUGH, clip_tokenizer, len(counts)))


@settings(max_examples=150, deadline=None)
@given(captions=_CAPTIONS)
def test_equals_tokenising_any_text(clip: Tower, clip_tokenizer: CLIPTokenizer, captions: list[str]) -> None:
    counts = count_tokens(captions, clip)
    expected = slowly(captions, clip_tokenizer, len(counts)) if captions else np.zeros_like(counts)
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=40, deadline=None)
@given(captions=st.lists(st.tuples(st.sampled_from(ROUGH), st.integers(1, 5)), min_size=1))
def test_a_caption_of_many_rows_counts_that_often(clip: Tower, captions: list[tuple[str, int]]) -> None:
    texts = [text for text, _ in captions]
    weighted = count_tokens(texts, clip, np.array([rows for _, rows in captions]))
    np.testing.assert_array_equal(weighted, count_tokens([text for text, rows in captions for _ in range(rows)], clip))


def test_long_captions_are_not_truncated(clip: Tower) -> None:
    word = clip.vocabulary.ids["dog</w>"]
    assert count_tokens(["dog " * 500], clip)[word] == 500


@pytest.mark.real
@pytest.mark.parametrize("number", range(10))
def test_equals_on_real_captions(clip: Tower, clip_tokenizer: CLIPTokenizer, number: int) -> None:
    path = material.caption_files()[number]
    captions = [text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text]
    cleaned = clean_captions(captions[:: len(captions) // 1_500 + 1])
    counts = count_tokens(cleaned, clip)
    assert counts.sum() > 5 * len(cleaned)
    np.testing.assert_array_equal(counts, slowly(cleaned, clip_tokenizer, len(counts)))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_equals_on_every_real_caption(clip: Tower, clip_tokenizer: CLIPTokenizer, number: int) -> None:
    path = material.caption_files()[number]
    rows = Counter(text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text)
    cleaned = clean_captions(list(rows))
    counts = count_tokens(cleaned, clip)
    np.testing.assert_array_equal(counts, slowly(cleaned, clip_tokenizer, len(counts)))


def test_the_second_tower_of_sdxl_counts_by_its_own_rules(tmp_path: Path) -> None:
    write_classic_tokenizer(tmp_path / "tokenizer")
    write_classic_tokenizer(tmp_path / "tokenizer_2", pad="!")
    first, second = load_towers(str(tmp_path))
    assert not first.same_as(second)
    for tower in (first, second):
        tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path / tower.name))
        assert tower.splits_at_spaces
        np.testing.assert_array_equal(count_tokens(ROUGH, tower), slowly(ROUGH, tokenizer, 49408))
    # There `!` is the padding token, a word of its own wherever it stands.
    assert count_tokens(["wow!"], first)[256] == 1
    assert count_tokens(["wow!"], second)[0] == 1


def test_a_tokenizer_that_keeps_spaces_is_given_whole_captions() -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(ROUGH * 20, trainer)
    backend.enable_truncation(3)
    backend.enable_padding(length=30)
    tower = tower_of("tokenizer", backend)
    assert not tower.splits_at_spaces
    backend.no_truncation()
    backend.no_padding()
    expected = np.zeros(len(tower.vocabulary), dtype=np.int64)
    for caption in ROUGH:
        np.add.at(expected, backend.encode(caption).ids, 2)
    np.testing.assert_array_equal(count_tokens(ROUGH, tower, np.full(len(ROUGH), 2)), expected)


def test_an_added_token_with_a_space_in_it_is_found(clip_tokenizer: CLIPTokenizer) -> None:
    backend = Tokenizer.from_str(clip_tokenizer.backend_tokenizer.to_str())
    backend.add_tokens(["new york"])
    tower = tower_of("tokenizer", backend)
    assert count_tokens(["in new york city"], tower)[49408] == 1


def test_a_longer_list_than_one_block(clip: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = count_tokens(ROUGH, clip)
    monkeypatch.setattr("cdkit.tokens.count._CAPTIONS_AT_ONCE", 3)
    monkeypatch.setattr("cdkit.tokens.count._WORDS_PER_TEXT", 2)
    np.testing.assert_array_equal(count_tokens(pa.array(ROUGH, pa.large_string()), clip), whole)


def test_words_are_counted_by_surface_form(clip: Tower) -> None:
    ids = clip.vocabulary.ids
    words = count_words(["dog, dog's hotdog café", "dog"], clip.vocabulary, np.array([1, 10]))
    assert words[ids["dog</w>"]] == words[ids["dog"]] == 12
    assert words[ids["hot</w>"]] == 0
    assert words[ids["cafÃ©</w>"]] == 1
