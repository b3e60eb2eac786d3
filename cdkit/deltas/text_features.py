"""What a base model's denoiser sees of a prompt: the features of one text tower, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

TOWERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def tokenizer_name(tower: str) -> str:
    """The name of a text encoder's tokenizer among a pipeline's parts."""
    return tower.replace("text_encoder", "tokenizer")


@dataclass(frozen=True)
class TextTower:
    """One text encoder of a pipeline with its tokenizer; `name` is its attribute there."""

    name: str
    tokenizer: Any
    model: Any


@dataclass(frozen=True)
class TextFeatures:
    """hidden (prompts, positions, width) goes into attention; pooled (prompts, width) is the whole prompt's.

    mask (prompts, positions): 1 where there is text, 0 behind it. pooled and mask are None where a family has none.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def text_towers(pipeline: DiffusionPipeline) -> list[TextTower]:
    """The pipeline's text encoders in their order."""
    return [
        TextTower(name, getattr(pipeline, tokenizer_name(name)), model)
        for name in TOWERS
        if (model := getattr(pipeline, name, None)) is not None
    ]


def token_ids(towers: Sequence[TextTower], prompts: Sequence[str]) -> list[torch.Tensor]:
    """Per tower the prompts' ids (prompts, context), padded to the context and truncated as the pipelines do."""
    return ids_and_lengths(towers, prompts)[0]


def ids_and_lengths(towers: Sequence[TextTower], prompts: Sequence[str]) -> tuple[list[torch.Tensor], list[int]]:
    """`token_ids`, and each prompt's length with start and end."""
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
    return [batch.input_ids for batch in encoded], encoded[0].attention_mask.sum(dim=1).tolist()


def on_devices(towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each tower's ids where its weights are."""
    return [row.to(next(tower.model.parameters()).device) for tower, row in zip(towers, ids, strict=True)]


def ids_and_mask(tower: TextTower, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A tower's ids where its weights are, and 1 where they are text, 0 where they pad it."""
    (rows,) = on_devices([tower], [ids])
    return rows, (rows != tower.tokenizer.pad_token_id).long()


def text_lengths(tower: TextTower, ids: torch.Tensor) -> list[int]:
    """How many of each row's ids (prompts, positions) are text."""
    return [int(number) for number in (ids != tower.tokenizer.pad_token_id).sum(dim=1)]


def encode_ids(towers: Sequence[TextTower], ids: Sequence[torch.Tensor]) -> TextFeatures:
    """Features of token ids, differentiable.

    Stable Diffusion 1 and 2 use the last layer after its norm; SDXL the layer before the last of both towers side by
    side, and the second tower's projected pooled output.
    """
    import torch

    on_device = on_devices(towers, ids)
    if len(towers) == 1:
        return TextFeatures(towers[0].model(on_device[0])[0])
    outputs = [tower.model(row, output_hidden_states=True) for tower, row in zip(towers, on_device, strict=True)]
    return TextFeatures(torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs[-1].text_embeds)
