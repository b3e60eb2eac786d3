"""What an imported file turned out to hold, before the base model is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.weights.delta import LowRank, ModifierToken
from cdkit.weights.importers.reading import shown

if TYPE_CHECKING:
    import torch

LONGEST_TOKEN = 200


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


def require_tensor(path: Path, name: str, value: Any) -> None:
    """Raise InputError unless the value is a tensor of floating-point numbers, some at least."""
    import torch

    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.ndim or not value.numel():
        raise InputError(f"{path}: {shown(name)} is no tensor of weights.", hint="Damaged file.")


def make_product(path: Path, name: str, up: Any, down: Any, hint: str) -> LowRank:
    """A change from a file's two factors; raises InputError when they are no matrices, or do not fit."""
    import torch

    if not isinstance(up, torch.Tensor) or not isinstance(down, torch.Tensor):
        raise InputError(f"{path}: {shown(name)} has only one of its two factors.", hint="Damaged file.")
    if not up.is_floating_point() or not down.is_floating_point():
        raise InputError(f"{path}: {shown(name)} has factors of {up.dtype} and {down.dtype}.", hint="Damaged file.")
    try:
        return LowRank(up, down)
    except ValueError as error:
        if up.ndim == down.ndim == 2 and up.numel() and down.numel():
            hint = "Damaged file."
        raise InputError(f"{path}: {shown(name)} is no matrix of a U-Net: {error}.", hint=hint) from error


def make_token(path: Path, text: str, rows: Mapping[str, Any], initializer: str = "") -> ModifierToken:
    """A token of rows (n, width) or single vectors; raises InputError for a text or shape that cannot be one."""
    name_it = "Name it yourself: --token '<new1>'."
    if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > LONGEST_TOKEN:
        raise InputError(f"{path} names a token {shown(text)}.", hint=name_it)
    if any(letter in text for letter in "/\\") or ".." in text:
        raise InputError(f"{path} names a token {text!r}, which looks like a path.", hint=name_it)
    shaped = {}
    for tower, row in rows.items():
        require_tensor(path, text, row)
        if row.ndim > 2:
            raise InputError(f"{path}: {text} has the shape {tuple(row.shape)}, no embedding's.", hint="Damaged file.")
        shaped[tower] = row.reshape(-1, row.shape[-1])
    if len({len(row) for row in shaped.values()}) != 1:
        raise InputError(f"{path}: {text} has different numbers of rows for its text encoders.", hint="Damaged file.")
    return ModifierToken(text, initializer if initializer.isprintable() else "", shaped)
