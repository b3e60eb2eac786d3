from __future__ import annotations

from pathlib import Path

import torch

from cdkit.deltas.text_features import text_towers
from cdkit.merging.constraints import caption_rows
from tests.merging.conftest import hidden_features, loaded

CAPTIONS = ["photo of a cat", "dog", "a photo " * 60, "cat of dog"]


def test_rows_are_the_pipelines_own_features_scaled_by_their_weights(base: Path) -> None:
    pipeline = loaded(base)
    counts = [1, 9, 1, 4]
    rows = caption_rows(text_towers(pipeline), CAPTIONS, counts, edge_weight=0.25)
    lengths = [len(pipeline.tokenizer(caption, truncation=True).input_ids) for caption in CAPTIONS]
    # Words and end of text of each, one padding of those that have any, and the start token once.
    assert len(rows) == sum(length - 1 for length in lengths) + sum(length < 77 for length in lengths) + 1
    wanted = []
    for caption, count, length in zip(CAPTIONS, counts, lengths, strict=True):
        hidden = hidden_features(pipeline, caption)
        wanted.append(hidden[1:length] * count**0.5)
        wanted.append(hidden[length : length + 1] * (0.25 * count) ** 0.5)
    wanted.append(hidden_features(pipeline, "dog")[:1] * (0.25 * sum(counts)) ** 0.5)
    gram = torch.cat(wanted).T @ torch.cat(wanted)
    assert torch.allclose(rows.T @ rows, gram, rtol=1e-4, atol=1e-4)
    without = caption_rows(text_towers(pipeline), CAPTIONS, counts, edge_weight=0.0)
    assert len(without) == sum(length - 1 for length in lengths)
