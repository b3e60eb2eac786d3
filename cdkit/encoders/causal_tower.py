"""The CLIP text tower for captions without padding: causal, pooled at the end-of-text token.

Causal attention means that a token never sees what follows it, and the embedding is read at the end token, so dropping
the padding after it changes nothing. The tower is that of Radford et al. 2021 (arXiv:2103.00020, section 2.4):
pre-norm residual blocks, learned positions, a final norm and a projection. It runs the libraries' own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdkit.encoders.tokenizing import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class CausalBlock(nn.Module):
    """x + scale₁·attention(norm₁(x)), then + scale₂·mlp(norm₂(x)); `qkv` maps width to 3·width, query first."""

    def __init__(
        self,
        *,
        heads: int,
        norm_1: nn.Module,
        qkv: nn.Linear,
        output: nn.Linear,
        norm_2: nn.Module,
        mlp: nn.Module,
        scale_1: nn.Module | None = None,
        scale_2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = norm_1, norm_2
        self.qkv, self.output, self.mlp = qkv, output, mlp
        self.scale_1, self.scale_2 = scale_1 or nn.Identity(), scale_2 or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[rows, length, width] to the same."""
        rows, length, width = x.shape
        query, key, value = self._split(self.qkv(self.norm_1(x)), 3)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.scale_1(self.output(mixed.transpose(1, 2).reshape(rows, length, width)))
        mapped: Tensor = x + self.scale_2(self.mlp(self.norm_2(x)))
        return mapped

    def at_ends(self, x: Tensor, ends: Tensor) -> Tensor:
        """The block's output at one position per row only, [rows, width]: all that the last block is asked for."""
        rows, length, width = x.shape
        rows_in_order = torch.arange(rows, device=x.device)
        normed = self.norm_1(x)
        weight, bias = self.qkv.weight, self.qkv.bias
        # Keys and values of all positions, the query of the end token alone.
        key, value = self._split(F.linear(normed, weight[width:], None if bias is None else bias[width:]), 2)
        query = F.linear(normed[rows_in_order, ends], weight[:width], None if bias is None else bias[:width])
        visible = torch.arange(length, device=x.device) <= ends[:, None]
        mixed = F.scaled_dot_product_attention(
            query.view(rows, self.heads, 1, width // self.heads), key, value, attn_mask=visible[:, None, None, :]
        )
        pooled = x[rows_in_order, ends] + self.scale_1(self.output(mixed.reshape(rows, width)))
        mapped: Tensor = pooled + self.scale_2(self.mlp(self.norm_2(pooled)))
        return mapped

    def _split(self, joined: Tensor, parts: int) -> tuple[Tensor, ...]:
        rows, length, width = joined.shape
        return (
            joined.view(rows, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind()
        )


class CausalTower(nn.Module):
    """Token ids of any length up to the context to embeddings, not normalised."""

    def __init__(
        self,
        *,
        token_embedding: nn.Embedding,
        positions: Tensor,
        blocks: Sequence[CausalBlock],
        final_norm: nn.Module,
        projection: nn.Linear | None,
        end_id: int | None,
    ) -> None:
        """end_id: the token whose first occurrence is pooled; None pools the highest id, as the first CLIP did."""
        super().__init__()
        self.token_embedding = token_embedding
        self.positions = nn.Parameter(positions.detach(), requires_grad=False)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.projection = projection or nn.Identity()
        self.end_id = end_id

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [rows, length] to [rows, dimension]."""
        ends = (tokens if self.end_id is None else tokens == self.end_id).int().argmax(dim=-1)
        x = self.token_embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x)
        last: CausalBlock = self.blocks[-1]  # type: ignore[assignment]
        projected: Tensor = self.projection(self.final_norm(last.at_ends(x, ends)))
        return projected


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer that shares the given tensors: weight [out, in], bias [out]."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


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
    probes = np.arange(len(PROBES))

    def embed(tower: Callable[[Tensor], Tensor], rows: np.ndarray, width: int | None = None) -> Tensor:
        return F.normalize(tower(torch.from_numpy(tokens.padded(rows, pad_id, width))).float(), dim=-1)

    expected = embed(padded, probes, context_length)
    together = embed(trimmed, probes)
    alone = torch.cat([embed(trimmed, probes[row : row + 1]) for row in probes])
    return all(torch.allclose(rows, expected, rtol=0, atol=TOLERANCE, equal_nan=True) for rows in (together, alone))
