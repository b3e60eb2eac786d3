"""Text features for a merge: rows of ordinary captions, over which the result should not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cdkit.weights.text_features import TextTower, encode_ids

if TYPE_CHECKING:
    import torch

BATCH = 64


def caption_rows(
    towers: Sequence[TextTower],
    captions: Sequence[str],
    counts: Sequence[int],
    *,
    edge_weight: float,
    advance: Callable[[int], None] = lambda number: None,
) -> torch.Tensor:
    """Rows (n, width): features of every word and end-of-text of the captions, scaled by the roots of their weights.

    A caption weighs its count. The start token, the same in every caption, is one row, and the first padding after
    every end-of-text another; they weigh edge_weight per caption.
    """
    import torch

    ids, lengths = tokenised(towers, captions)
    order = sorted(range(len(captions)), key=lambda index: lengths[index])
    rows, start = [], None
    with torch.no_grad():
        for begin in range(0, len(order), BATCH):
            batch = order[begin : begin + BATCH]
            # Causal attention: what stands behind the padding that is asked for cannot change it.
            longest = min(max(lengths[index] for index in batch) + 1, ids[0].shape[1])
            hidden = encode_ids(towers, [one[batch, :longest] for one in ids]).hidden.float().cpu()
            start = hidden[0, 0]
            for index, features in zip(batch, hidden, strict=True):
                end = lengths[index]
                rows.append(features[1:end] * counts[index] ** 0.5)
                if edge_weight and end < len(features):
                    rows.append(features[end : end + 1] * (edge_weight * counts[index]) ** 0.5)
            advance(len(batch))
    if edge_weight and start is not None:
        rows.append(start[None] * (edge_weight * sum(counts)) ** 0.5)
    return torch.cat(rows)


def tokenised(towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
    """Ids per tower (prompts, context) and each prompt's length with start and end."""
    encoded = [
        tower.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tower.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
            return_attention_mask=True,
        )
        for tower in towers
    ]
    return [one.input_ids for one in encoded], encoded[0].attention_mask.sum(dim=1).tolist()
