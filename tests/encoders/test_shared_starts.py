"""Embeddings are the library's own padded ones, whatever captions begin with and however dirty they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cdkit.encoders import cpu_products, load_text_encoder
from cdkit.encoders.open_clip import load_tower
from tests.support import tiny_models

DIRTY = (
    *("", " ", "x" * 10_000, "the " * 3000, "<end_of_text> a dog", "<end_of_text>", "a <end_of_text> dog"),
    *("<start_of_text> dog", "Caf&eacute; &amp; Bar", "🎉🎉 20% OFF", "东京塔", "schÃ¶n", "\u202eabc", "a\x00b"),
)
CAPTIONS = [*DIRTY, *(f"{word} number {n} of many" for n in range(40) for word in ("a", "two", "the", f"word{n}"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.open_clip_folder(tmp_path_factory.mktemp("model") / "tiny", width=32, heads=2)


@pytest.mark.parametrize("least", [0, cpu_products.LEAST_PRODUCT])
@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_embeddings_equal_the_padded_ones(
    folder: Path, precision: str, allowed: float, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_products, "LEAST_PRODUCT", least)
    tower = load_tower(str(folder))
    tokens = tower.tokenizer(CAPTIONS)
    table = torch.from_numpy(tokens.padded(np.arange(len(CAPTIONS)), tower.pad_id, tower.context_length)).long()
    with torch.inference_mode():
        expected = F.normalize(tower.padded(table), dim=-1).numpy()
    encoder = load_text_encoder(f"open_clip:{folder}", device="cpu", precision=precision)
    assert np.abs(encoder.encode(CAPTIONS) - expected).max() < allowed
    assert (encoder.precision_error == 0) == (precision == "fp32")
    assert encoder.precision_error < allowed


def test_captions_are_grouped_by_what_they_begin_with(folder: Path) -> None:
    encoder = load_text_encoder(f"open_clip:{folder}", device="cpu")
    assert encoder._starts is not None
    groups = encoder._starts.groups(encoder.tokenize(CAPTIONS))
    assert sorted(row for group in groups for row in group.rows) == list(range(len(CAPTIONS)))
    skipped = {int(row): group.skipped for group in groups for row in group.rows}
    assert {skipped[CAPTIONS.index(f"{word} number 3 of many")] for word in ("a", "two", "the")} == {3}
    assert skipped[CAPTIONS.index("word3 number 3 of many")] == 3
    assert skipped[CAPTIONS.index("Caf&eacute; &amp; Bar")] == 1
    assert skipped[CAPTIONS.index("a <end_of_text> dog")] == 2
    # The end token is what is pooled: it is run, wherever it stands.
    assert [skipped[CAPTIONS.index(text)] for text in ("", "<end_of_text> a dog", "x" * 10_000)] == [1, 1, 1]
