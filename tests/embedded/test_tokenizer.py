"""The tokenizer is CLIP's own, and token rows that training did not touch follow the seed rule."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cdkit.embedded import load_clip, weight_files
from cdkit.embedded.tokenizer import CONTEXT, END_ID, ROW_DEVIATION, START_ID, load_tokenizer, seeded_rows, vocabulary

SEEDED_TABLE = "66d0aa6b2c27ee2fc4bbf50a6151ed14e8857c5b08298b21c5a09ad0db2ebb9c"
CAPTIONS = [
    "a photo of a star",
    "Striped ORANGE and purple star, at night!",
    "it's 12 o'clock: naïve café — 東京 🙂",
    "supercalifragilistic pneumonoultramicroscopic",
    "",
]


def test_the_vocabulary_is_clips() -> None:
    entries, merges = vocabulary()
    assert len(entries) == 49_408
    assert len(merges) == 48_894
    assert (entries["<|startoftext|>"], entries["<|endoftext|>"], entries["star</w>"]) == (START_ID, END_ID, 1565)
    assert entries["ktn"] == 42_170


@pytest.mark.parametrize("caption", CAPTIONS)
def test_tokens_are_those_of_open_clip(caption: str) -> None:
    import open_clip

    theirs = open_clip.tokenizer.SimpleTokenizer()([caption])[0].tolist()
    ours = load_tokenizer()(caption, padding="max_length")["input_ids"]
    assert len(ours) == CONTEXT
    assert ours[: ours.index(END_ID) + 1] == theirs[: theirs.index(END_ID) + 1]


def test_too_long_prompts_are_cut_at_the_context() -> None:
    ids = load_tokenizer()("star " * 200, truncation=True)["input_ids"]
    assert len(ids) == CONTEXT
    assert ids[-1] == END_ID


def test_the_seed_rule_gives_one_table() -> None:
    rows = seeded_rows(128)
    assert rows.shape == (49_408, 128)
    assert rows.dtype == np.float32
    assert abs(float(rows.std()) - ROW_DEVIATION) < 1e-3
    assert abs(float(rows.mean())) < 1e-3
    assert hashlib.sha256(rows.tobytes()).hexdigest() == SEEDED_TABLE


def test_untrained_rows_are_seeded_and_trained_rows_are_not() -> None:
    table = load_clip().model.text_model.embeddings.token_embedding.weight.numpy()
    trained = weight_files.read_tensors(weight_files.TEXT_ENCODER)["token_ids"].numpy()
    seeded = seeded_rows(table.shape[1])
    untrained = np.setdiff1d(np.arange(len(table)), trained)
    assert len(untrained) > 40_000
    np.testing.assert_array_equal(table[untrained], seeded[untrained])
    entries, _ = vocabulary()
    for word in ("star", "mug", "striped", "red", "night"):
        assert entries[f"{word}</w>"] in trained
    assert np.abs(table[trained] - seeded[trained]).max(axis=1).min() > 0
    # The initializers of the paper are rows nothing trained.
    assert {entries["ktn"], entries["pll"], entries["ucd</w>"]} <= set(untrained.tolist())
