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

from cdkit.encoders.cpu_products import fast_linear
from cdkit.encoders.tokenizing import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


# Keys and values, [rows or 1, heads, length, width of a head] each, of tokens that stand before the ones given.
Before = tuple[Tensor, Tensor]


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

    def forward(self, x: Tensor, before: Before | None = None) -> tuple[Tensor, Before]:
        """[rows, length, width] to the same, and the keys and values of these tokens."""
        rows, length, width = x.shape
        query, key, value = self._split(self.qkv(self.norm_1(x)), 3)
        if before is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            every_key, every_value = _joined(before, key, value)
            visible = torch.ones(length, every_key.shape[2], dtype=torch.bool, device=x.device)
            visible = visible.tril(every_key.shape[2] - length)
            mixed = F.scaled_dot_product_attention(query, every_key, every_value, attn_mask=visible)
        x = x + self.scale_1(self.output(mixed.transpose(1, 2).reshape(rows, length, width)))
        return x + self.scale_2(self.mlp(self.norm_2(x))), (key, value)

    def at_ends(self, x: Tensor, ends: Tensor, before: Before | None = None) -> Tensor:
        """The block's output at one position per row only, [rows, width]: all that the last block is asked for."""
        rows, length, width = x.shape
        in_order = torch.arange(rows, device=x.device)
        normed = self.norm_1(x)
        weight, bias = self.qkv.weight, self.qkv.bias
        # Keys and values of all positions, the query of the end token alone.
        key, value = self._split(fast_linear(normed, weight[width:], None if bias is None else bias[width:]), 2)
        query = fast_linear(normed[in_order, ends], weight[:width], None if bias is None else bias[:width])
        visible = torch.arange(length, device=x.device) <= ends[:, None]
        if before is not None:
            key, value = _joined(before, key, value)
            visible = F.pad(visible, (key.shape[2] - length, 0), value=True)
        mixed = F.scaled_dot_product_attention(
            query.view(rows, self.heads, 1, width // self.heads), key, value, attn_mask=visible[:, None, None, :]
        )
        pooled = x[in_order, ends] + self.scale_1(self.output(mixed.reshape(rows, width)))
        mapped: Tensor = pooled + self.scale_2(self.mlp(self.norm_2(pooled)))
        return mapped

    def _split(self, joined: Tensor, parts: int) -> tuple[Tensor, ...]:
        rows, length, width = joined.shape
        return (
            joined.view(rows, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4).unbind()
        )


def _joined(before: Before, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    first_key, first_value = (part.expand(len(key), -1, -1, -1) for part in before)
    return torch.cat([first_key, key], dim=2), torch.cat([first_value, value], dim=2)


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

    def forward(self, tokens: Tensor, start: Sequence[Before] | None = None) -> Tensor:
        """int [rows, length] to [rows, dimension].

        start: what `starting` gives for the first tokens, which are then not run again.
        """
        ends = (tokens if self.end_id is None else tokens == self.end_id).int().argmax(dim=-1)
        skipped = 0 if start is None else start[0][0].shape[2]
        x = self.token_embedding(tokens[:, skipped:]) + self.positions[skipped : tokens.shape[1]]
        for number, block in enumerate(self.blocks[:-1]):
            x, _ = block(x, None if start is None else start[number])
        last: CausalBlock = self.blocks[-1]  # type: ignore[assignment]
        projected: Tensor = self.projection(
            self.final_norm(last.at_ends(x, ends - skipped, None if start is None else start[-1]))
        )
        return projected

    def starting(self, tokens: Tensor, start: Sequence[Before] | None = None) -> list[Before]:
        """Keys and values that tokens, int [rows, length], have at every block, whatever follows them."""
        skipped = 0 if start is None else start[0][0].shape[2]
        x = self.token_embedding(tokens) + self.positions[skipped : skipped + tokens.shape[1]]
        keyed = []
        for number, block in enumerate(self.blocks):
            x, before = block(x, None if start is None else start[number])
            keyed.append(before)
        return keyed


# The scale in OpenAI's x·σ(1.702·x), which the libraries compute in three passes over the widest tensor there is.
QUICK_GELU = 1.702
QUICK_GELUS = ("QuickGELU", "QuickGELUActivation", "QuickGelu")


def two_layers(first: nn.Linear, activation: nn.Module, second: nn.Linear) -> nn.Sequential:
    """A block's MLP; x·σ(c·x) = silu(c·x) / c is one pass when the layers before and after it carry the constant."""
    if type(activation).__name__ not in QUICK_GELUS:
        return nn.Sequential(first, activation, second)
    scaled = linear(first.weight * QUICK_GELU, None if first.bias is None else first.bias * QUICK_GELU)
    return nn.Sequential(scaled, nn.SiLU(inplace=True), linear(second.weight / QUICK_GELU, second.bias))


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
        return F.normalize(tower(torch.from_numpy(tokens.padded(rows, pad_id, width)).long()).float(), dim=-1)

    expected = embed(padded, probes, context_length)
    together = embed(trimmed, probes)
    alone = torch.cat([embed(trimmed, probes[row : row + 1]) for row in probes])
    return all(torch.allclose(rows, expected, rtol=0, atol=TOLERANCE, equal_nan=True) for rows in (together, alone))
