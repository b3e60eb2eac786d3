"""What an imported file turned out to hold, before the base model is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import InputError
from cdkit.weights.delta import LowRank, ModifierToken

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Found:
    """full: whole weights by parameter name; changes: differences; named: differences by kohya's module names and
    `weight` or `bias`, which only the base model can resolve."""

    kind: str
    path: Path
    full: Mapping[str, torch.Tensor] = field(default_factory=dict)
    changes: Mapping[str, torch.Tensor | LowRank] = field(default_factory=dict)
    named: Mapping[tuple[str, str], torch.Tensor | LowRank] = field(default_factory=dict)
    tokens: tuple[ModifierToken, ...] = ()
    header: Mapping[str, str] = field(default_factory=dict)


def make_token(path: Path, text: str, rows: Mapping[str, torch.Tensor], initializer: str = "") -> ModifierToken:
    """A token of rows (n, width) or single vectors; raises InputError for a text or shape that cannot be one."""
    if not text.strip() or text != text.strip() or any(ord(letter) < 32 for letter in text):
        raise InputError(f"{path} names a token {text!r}.", hint="Name it yourself: --token '<new1>'.")
    if any(letter in text for letter in "/\\") or ".." in text:
        raise InputError(
            f"{path} names a token {text!r}, which looks like a path.", hint="Name it yourself: --token '<new1>'."
        )
    shaped = {}
    for tower, row in rows.items():
        if row.ndim not in (1, 2) or not row.numel() or not row.is_floating_point():
            raise InputError(f"{path}: {text} has the shape {tuple(row.shape)}, no embedding's.", hint="Damaged file.")
        shaped[tower] = row.reshape(-1, row.shape[-1])
    if len({len(row) for row in shaped.values()}) != 1:
        raise InputError(f"{path}: {text} has different numbers of rows for its text encoders.", hint="Damaged file.")
    return ModifierToken(text, initializer, shaped)
