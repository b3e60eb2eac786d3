"""Nearest vocabulary entries by embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTextConfig, CLIPTextModel

from cdkit.core.errors import InputError
from cdkit.tokens.explain import add_neighbours, embedding_table
from cdkit.tokens.modifiers import Pick
from cdkit.tokens.vocabulary import Vocabulary

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
