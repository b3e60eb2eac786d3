"""Whether a text tower gives the same embedding without its padding: measured, whatever its config says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from cdkit.encoders.tokenizing import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

# Rounding moves a normalised component by about 1e-7; attention to padding or another pooling moves it by 1e-2.
TOLERANCE = 1e-5
PROBES = ("", "a dog", "a photo of two red cars parked in front of an old house by the sea")


@torch.inference_mode()
def same_without_padding(
    trimmed: Callable[[Tensor], Tensor],
    padded: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    pad_id: int,
) -> bool:
    """Compare captions of several lengths run at their own length, run in one batch, and padded to the full context.

    Also true when the weights are broken in the same way on both sides: NaN is reported where captions are encoded.
    """
    tokens = tokenizer(PROBES)
    every = np.arange(len(PROBES))

    def embed(tower: Callable[[Tensor], Tensor], rows: np.ndarray, width: int | None = None) -> Tensor:
        return F.normalize(tower(torch.from_numpy(tokens.padded(rows, pad_id, width))).float(), dim=-1)

    expected = embed(padded, every, context_length)
    together = embed(trimmed, every)
    alone = torch.cat([embed(trimmed, every[row : row + 1]) for row in every])
    return all(torch.allclose(found, expected, rtol=0, atol=TOLERANCE, equal_nan=True) for found in (together, alone))
