from __future__ import annotations

import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.encoders import tokenizing
from cdkit.encoders.tokenizing import ClipTokenizer, LibraryTokenizer, is_standard_clip, pooled_positions
from tests.encoders.conftest import CAPTIONS
from tests.support import material, tiny_models

OPEN_CLIP = open_clip.SimpleTokenizer()
FAST = ClipTokenizer(open_clip.SimpleTokenizer(), 77)


def _assert_as_open_clip(raw: list[str]) -> None:
    tokens = FAST(raw)
    padded = tokens.padded(np.arange(len(raw)), 0, 77)
    assert np.array_equal(padded, OPEN_CLIP(raw).numpy())
    assert tokens.full_lengths.tolist() == [len(OPEN_CLIP.encode(caption)) + 2 for caption in raw]


def test_equals_open_clip_on_awkward_captions() -> None:
    _assert_as_open_clip([*CAPTIONS, "Straße'S CAFÉ'LL", "it'ſ K'D", "a\u200bb\u3000c", "&amp;amp; &lt;b&gt;", "٣½Ⅷ"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_equals_open_clip_on_any_text(raw: list[str]) -> None:
    _assert_as_open_clip(raw)


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["laion_img2dataset_10k", "multi30k_fr_cs", "bl_flickr_commons", "iiw_long_human_captions"]
)
def test_equals_open_clip_on_real_captions(name: str) -> None:
    table = pq.read_table(material.path(f"captions/{name}.parquet"), columns=["TEXT"])
    captions = sorted(set(table["TEXT"].drop_null().to_pylist()))
    _assert_as_open_clip(captions[:: max(1, len(captions) // 1500)])


def test_forgetting_words_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "CACHED_WORDS", 3)
    tokenizer = ClipTokenizer(open_clip.SimpleTokenizer(), 77)
    captions = ["a b c d e f g", "g f e d c b a", "a <end_of_text>", "b"]
    expected = FAST(captions)
    for _ in range(2):
        assert np.array_equal(tokenizer(captions).ids, expected.ids)
    assert len(tokenizer.words) <= 3
    assert set(tokenizer.tokenizer.cache) == {"<start_of_text>", "<end_of_text>"}


def test_truncation_keeps_the_end_token_last_and_counts_all() -> None:
    tokens = FAST(["word " * 200, "word"])
    assert tokens.full_lengths.tolist() == [202, 3]
    assert tokens.lengths.tolist() == [77, 3]
    assert tokens.ids[76] == OPEN_CLIP.eot_token_id


def test_no_captions() -> None:
    assert FAST([]).starts.tolist() == [0]
    assert LibraryTokenizer(lambda captions: [], lambda captions: [], None)([]).full_lengths.tolist() == []


def test_a_lone_surrogate_is_no_crash() -> None:
    assert FAST(["a \udc80 b"]).full_lengths[0] >= 4


def test_library_tokenizer_cuts_after_the_pooled_token() -> None:
    table = np.array([[7, 1, 9, 0], [7, 9, 9, 9]])
    cut = LibraryTokenizer(lambda captions: table, lambda captions: [3, 2], lambda ids: pooled_positions(ids, 9))
    assert cut(["x", "y"]).ids.tolist() == [7, 1, 9, 7, 9]
    assert cut.full_length()(["x", "y"]).ids.tolist() == table.reshape(-1).tolist()


def test_pooled_positions_are_the_first_end_or_the_highest_id() -> None:
    table = np.array([[3, 9, 5, 5], [3, 5, 9, 5]])
    assert pooled_positions(table, 5).tolist() == [2, 1]
    assert pooled_positions(table, None).tolist() == [1, 2]


def test_the_standard_vocabulary_is_recognised_under_either_name_of_its_special_tokens() -> None:
    assert is_standard_clip(tiny_models.clip_tokenizer().get_vocab(), OPEN_CLIP.encoder)
    assert not is_standard_clip(tiny_models.letter_tokenizer().get_vocab(), OPEN_CLIP.encoder)
    swapped = dict(OPEN_CLIP.encoder)
    swapped["dog</w>"], swapped["cat</w>"] = swapped["cat</w>"], swapped["dog</w>"]
    assert not is_standard_clip(swapped, OPEN_CLIP.encoder)
