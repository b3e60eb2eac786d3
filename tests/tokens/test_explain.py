"""Explanations of words, and the neighbours of picks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTextConfig, CLIPTextModel

from cdkit.core.errors import InputError
from cdkit.tokens.count import TokenCounts, write_counts
from cdkit.tokens.explain import add_neighbours, embedding_table, explain_word, explain_words
from cdkit.tokens.modifiers import Pick
from cdkit.tokens.vocabulary import Tower, Vocabulary


def test_why_not_sks(clip: Tower, tmp_path: Path) -> None:
    counts = np.zeros(len(clip.vocabulary), dtype=np.int64)
    counts[clip.vocabulary.ids["sks</w>"]] = 16
    write_counts(tmp_path, TokenCounts((clip,), (counts,), None, 200_000, 900_000), "f")
    (answer,) = explain_words(["sks"], "clip", tmp_path)
    assert answer.sentence() == (
        "sks: one token (sks</w>, id 48136); sks</w> occurs 16 times in 200,000 caption rows; "
        f"part of {len(answer.inside)} other tokens ({', '.join(t.removesuffix('</w>') for t in answer.inside[:4])}"
        f" and {len(answer.inside) - 4} more)."
    )
    assert {"asks</w>", "masks</w>", "risks</w>"} <= set(answer.inside)
    assert answer.as_json()["single_token"] is True
    assert answer.as_json()["entries"] == [{"token": "sks</w>", "token_id": 48136, "count": 16}]


def test_a_word_piece(clip: Tower) -> None:
    answer = explain_word("ktn", clip)
    assert len(answer.ids) == 2
    assert answer.entries == (("ktn", 42170),)
    assert answer.sentence().startswith(
        "ktn: 2 tokens in a prompt (k 74 + tn</w> 7248); in the vocabulary also as ktn, id 42170; "
        "part of no other token; shares k with "
    )


def test_both_forms_and_an_entrys_own_spelling(clip: Tower) -> None:
    for word in ("pll", "pll</w>", " PLL "):
        answer = explain_word(word, clip)
        assert answer.ids == (25266,)
        assert answer.entries == (("pll", 47629), ("pll</w>", 25266))


def test_other_scripts_and_several_words(clip: Tower) -> None:
    assert explain_word("café", clip).ids == (clip.vocabulary.ids["cafÃ©</w>"],)
    assert explain_word("moon gate", clip).tokens == ("moon</w>", "gate</w>")
    assert explain_word("moon gate", clip).entries == ()


@pytest.mark.parametrize("word", ["", "  ", "\u3000"])
def test_nothing_to_explain(clip: Tower, word: str) -> None:
    with pytest.raises(InputError, match="nothing to explain"):
        explain_word(word, clip)


VOCABULARY = Vocabulary(("a", "b", "c", "d", "<end>"), specials=frozenset({4}))
TABLE = np.array([[1, 0], [2, 0.1], [0, 1], [-1, 0], [1, 0]], dtype=np.float32)


def test_nearest_by_cosine_without_itself_and_special_tokens() -> None:
    (pick,) = add_neighbours([Pick("a", 0, 7)], VOCABULARY, TABLE, number=2)
    assert [near.token for near in pick.neighbours] == ["b", "c"]
    assert pick.neighbours[0].similarity == pytest.approx(2 / np.hypot(2, 0.1))
    assert add_neighbours([], VOCABULARY, TABLE) == ()


def test_a_table_too_small_for_the_vocabulary() -> None:
    with pytest.raises(InputError, match="4 token embeddings, the tokenizer 5"):
        add_neighbours([Pick("a", 0)], VOCABULARY, TABLE[:4])


def test_the_table_of_a_model_folder(tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=99, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = CLIPTextModel(config)
    model.save_pretrained(tmp_path / "text_encoder")
    table = embedding_table(str(tmp_path))
    np.testing.assert_array_equal(table, model.get_input_embeddings().weight.detach().numpy())


def test_a_folder_without_a_text_encoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text_encoder"):
        embedding_table(str(tmp_path))
