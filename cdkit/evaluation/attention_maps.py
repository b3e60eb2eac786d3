"""Cross-attention maps: where in the image each prompt token was looked at, averaged over heads, layers and steps.

Custom Diffusion's Figure 16, after Hertz et al. 2022. The probabilities are computed beside the model's own attention
by hooks, so that the picture drawn is exactly the one drawn without them, whatever attention processor runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class AttentionRecord:
    """Sums of attention probabilities (positions, tokens) by the number of positions, and how many went into each."""

    sums: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, probabilities: Tensor) -> None:
        """One layer's (positions, tokens) at one step."""
        positions = probabilities.shape[0]
        known = self.sums.get(positions)
        self.sums[positions] = probabilities if known is None else known + probabilities
        self.counts[positions] = self.counts.get(positions, 0) + 1

    def maps(self, aspect: float) -> Tensor:
        """The mean over layers and steps: float32 (tokens, height, width) at the finest layer's size.

        aspect: height over width of the image. Every layer counts the same. Raises ValueError when nothing was seen.
        """
        if not self.sums:
            raise ValueError("no cross-attention was recorded")
        height, width = grid_of(max(self.sums), aspect)
        total = torch.zeros(next(iter(self.sums.values())).shape[1], height, width)
        for positions, summed in self.sums.items():
            rows, columns = grid_of(positions, aspect)
            grid = summed.T.reshape(1, -1, rows, columns)
            total += F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)[0]
        return total / sum(self.counts.values())


def grid_of(positions: int, aspect: float) -> tuple[int, int]:
    """Height and width of a layer with that many positions: height over width as near `aspect` as it divides."""
    height = min(
        (rows for rows in range(1, positions + 1) if positions % rows == 0),
        key=lambda rows: abs(rows * rows / positions - aspect),
    )
    return height, positions // height


@contextmanager
def recorded_attention(unet: Any) -> Iterator[AttentionRecord]:
    """Record every cross-attention of `unet` while the block runs; of a guided batch the last, conditional, image."""
    record = AttentionRecord()
    handles = [
        module.register_forward_pre_hook(_hook(record), with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _hook(record: AttentionRecord) -> Any:
    def see(attention: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        text = arguments[1] if len(arguments) > 1 else named.get("encoder_hidden_states")
        if text is not None:
            record.add(cross_attention(attention, hidden[-1:], text[-1:]).float().cpu())

    return see


@torch.no_grad()
def cross_attention(attention: Any, hidden: Tensor, text: Tensor) -> Tensor:
    """Attention probabilities of one image, mean over heads: hidden (1, positions, d), to (positions, tokens)."""
    if attention.norm_cross:
        text = attention.norm_encoder_hidden_states(text)
    query = attention.head_to_batch_dim(attention.to_q(hidden))
    key = attention.head_to_batch_dim(attention.to_k(text))
    probabilities: Tensor = attention.get_attention_scores(query, key)
    return probabilities.mean(dim=0)
