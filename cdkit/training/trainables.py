"""Trainables: the weights of the U-Net that train, the modifier tokens' rows, and what is kept out of the gradient."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cdkit.core.errors import ConfigError
from cdkit.deltas.apply import extended_tokenizer, mend_legacy_end
from cdkit.deltas.delta import ModifierToken
from cdkit.deltas.low_rank import LowRank
from cdkit.deltas.text_features import text_towers, tokenizer_name

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch.utils.hooks import RemovableHandle


ROWS = "rows."
_PROJECTIONS = re.compile(r"\.attn2\.to_[kv]$")


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
        """Token ids (n, positions) to embeddings (n, positions, width) in the table's type."""
        matches = token_ids.unsqueeze(-1) == self.ids
        is_new = matches.any(dim=-1)
        old = self.table(token_ids.masked_fill(is_new, 0))
        new = functional.embedding(matches.int().argmax(dim=-1), self.rows)
        # Gemma's table scales what it gives, and so must what stands beside it.
        new = (new * getattr(self.table, "embed_scale", 1.0)).to(old.dtype)
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
    installed: dict[str, RowsBesideTable] = {}
    for tower in text_towers(pipeline):
        tokenizer = extended_tokenizer(tower.tokenizer, [token.text for token in tokens])
        table = tower.model.get_input_embeddings()
        if isinstance(table, RowsBesideTable):
            raise ConfigError(
                f"The {tower.name} is the same model as another text encoder: a token would be given to it twice.",
                hint="Load the text encoders apart from each other.",
            )
        starts = torch.tensor([token.ids[tower.name] for token in tokens], device=table.weight.device)
        ids = tokenizer.convert_tokens_to_ids([token.text for token in tokens])
        rows = RowsBesideTable(table, ids, table.weight.detach()[starts])
        tower.model.set_input_embeddings(rows)
        mend_legacy_end(tower.model, tokenizer.eos_token_id)
        setattr(pipeline, tokenizer_name(tower.name), tokenizer)
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


@dataclass(frozen=True)
class Trainables:
    """The U-Net's trained parameters by name, their fp32 values before training, and the modifier rows by tower.

    directions: (rank, inputs) by name where what trains is the left factor of a change, (outputs, rank).
    """

    weights: Mapping[str, nn.Parameter]
    base: Mapping[str, torch.Tensor]
    rows: Mapping[str, RowsBesideTable]
    directions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    # The values before training on the device, once they were asked for.
    _starts: dict[str, torch.Tensor] = field(default_factory=dict)

    def named(self) -> dict[str, nn.Parameter]:
        """Every trained parameter; rows as `rows.<tower>`."""
        return {**self.weights, **{f"{ROWS}{tower}": module.rows for tower, module in self.rows.items()}}

    def changes(self) -> dict[str, torch.Tensor | LowRank]:
        """Fine-tuned minus base, fp32 on the CPU."""
        trained = {name: weight.detach().cpu() - self.base[name] for name, weight in self.weights.items()}
        return {
            name: LowRank(change, self.directions[name]) if name in self.directions else change
            for name, change in trained.items()
        }

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """The U-Net as it was before training, for a while; the parameters keep their memory and their gradients."""
        if not self._starts:
            self._starts.update({name: self.base[name].to(weight.device) for name, weight in self.weights.items()})
        trained = {name: weight.data for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            weight.data = self._starts[name]
        try:
            yield
        finally:
            for name, weight in self.weights.items():
                weight.data = trained[name]

    def optimizer(self, learning_rate: float, token_learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
        """AdamW over weights and rows; rows have a rate of their own and never decay."""
        groups: list[dict[str, Any]] = []
        if self.weights:
            weights = list(self.weights.values())
            groups.append({"params": weights, "lr": learning_rate, "weight_decay": weight_decay})
        if self.rows:
            rows = [module.rows for module in self.rows.values()]
            groups.append({"params": rows, "lr": token_learning_rate, "weight_decay": 0.0})
        fused = next(iter(self.named().values())).device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=fused)


class _Rounded(nn.Module):
    """What a module computes with, of a parameter that stays fp32: its value in the compute type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, master: torch.Tensor) -> torch.Tensor:
        return master.to(self.dtype)


def select_weights(
    unet: Any, names: Sequence[str], *, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """Move a U-Net to the device in `dtype`, frozen but for the named parameters, which stay fp32 and train.

    Where they are used, they are rounded to `dtype`; no other weight is kept in fp32. Returns them, and their fp32
    values on the CPU. They start from the fp32 weights the U-Net has now, not from rounded ones.
    """
    parameters = dict(unet.named_parameters())
    base = {name: parameters[name].detach().float().cpu().clone() for name in names}
    # Not diffusers' own `to`, which warns of every change of type.
    nn.Module.to(unet.requires_grad_(False).eval(), device=device, dtype=dtype)
    trained = {}
    for name in names:
        owner, _, part = name.rpartition(".")
        module = unet.get_submodule(owner)
        master = nn.Parameter(base[name].to(device, copy=True))
        trained[name] = master
        setattr(module, part, master)
        if dtype != torch.float32:
            parametrize.register_parametrization(module, part, _Rounded(dtype), unsafe=True)
    return trained, base


class _WithoutFirstGradient(torch.autograd.Function):
    """Leaves (n, positions, width) as it is; the gradient of position 0 is zero."""

    @staticmethod
    def forward(context: Any, output: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept[:, :1] = 0
        return kept


def detach_first_token(unet: Any) -> list[RemovableHandle]:
    """Cross-attention keys and values at position 0 are as before, but pass no gradient (Kumari et al. 2023, app. E).

    The first position is the start token's in every prompt: training on it would change all prompts alike. The
    hooks have no effect on what the U-Net computes; removing their handles ends them.
    """
    return [
        module.register_forward_hook(_detach)
        for name, module in unet.named_modules()
        if _PROJECTIONS.search(name) is not None
    ]


def _detach(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return _WithoutFirstGradient.apply(output)  # type: ignore[no-any-return]
