"""Modifier tokens while they train: rows of their own beside a text tower's frozen embedding table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from cdkit.weights.apply import extended_tokenizer, mend_legacy_end
from cdkit.weights.delta import ModifierToken
from cdkit.weights.text_features import text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class RowsBesideTable(nn.Module):
    """A frozen embedding table, and trainable rows (n, width) in fp32 for the ids that follow from `ids`.

    No optimizer ever sees the table, so that weight decay cannot shrink its rows.
    """

    def __init__(self, table: nn.Module, ids: Sequence[int], rows: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = nn.Parameter(rows.detach().float().clone())
        self.ids: torch.Tensor
        self.register_buffer("ids", torch.tensor(list(ids), dtype=torch.long), persistent=False)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Token ids (n, positions) to fp32 embeddings (n, positions, width)."""
        matches = token_ids.unsqueeze(-1) == self.ids
        is_new = matches.any(dim=-1)
        old = self.table(token_ids.masked_fill(is_new, 0)).float()
        new = functional.embedding(matches.int().argmax(dim=-1), self.rows)
        return torch.where(is_new.unsqueeze(-1), new, old)


@dataclass(frozen=True)
class NewToken:
    """A modifier token to train: its text, and the initializer's name and id in each tower's vocabulary, by tower."""

    text: str
    initializer: str
    ids: dict[str, int]


def install_tokens(pipeline: DiffusionPipeline, tokens: Sequence[NewToken]) -> dict[str, RowsBesideTable]:
    """Give every text tower of the pipeline the tokens, starting from their initializers; returns the rows by tower.

    The towers are those of a pipeline loaded for training alone: nothing puts the plain tables back.
    """
    installed = {}
    for tower in text_towers(pipeline):
        tokenizer = extended_tokenizer(tower.tokenizer, [token.text for token in tokens])
        table = tower.model.get_input_embeddings()
        starts = torch.tensor([token.ids[tower.name] for token in tokens], device=table.weight.device)
        ids = tokenizer.convert_tokens_to_ids([token.text for token in tokens])
        rows = RowsBesideTable(table, ids, table.weight.detach()[starts])
        tower.model.set_input_embeddings(rows)
        mend_legacy_end(tower.model, tokenizer.eos_token_id)
        setattr(pipeline, tower.name.replace("text_encoder", "tokenizer"), tokenizer)
        installed[tower.name] = rows
    return installed


def trained_tokens(tokens: Sequence[NewToken], rows: Mapping[str, RowsBesideTable]) -> tuple[ModifierToken, ...]:
    """The tokens with their rows as they are now, for a delta."""
    return tuple(
        ModifierToken(
            token.text,
            token.initializer,
            {tower: module.rows.detach().cpu()[index : index + 1].clone() for tower, module in rows.items()},
        )
        for index, token in enumerate(tokens)
    )
