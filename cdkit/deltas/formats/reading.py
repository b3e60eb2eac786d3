"""Untrusted weight files, read without running anything in them, and what they turned out to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.file_kinds import check_weight_file, is_safetensors
from cdkit.core.shards import read_tensors
from cdkit.deltas.delta import ModifierToken
from cdkit.deltas.low_rank import LowRank
from cdkit.deltas.torch_file import read_torch_file

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


# SDXL's full keys and values are 1.4 GB in fp32.
LARGEST = 4 << 30
_DEEPEST = 4


@dataclass(frozen=True)
class Contents:
    """A file's nested mapping of plain values and tensors, and the text header of a safetensors file."""

    path: Path
    values: Mapping[str, Any]
    header: Mapping[str, str]


def read_contents(path: Path) -> Contents:
    """Read a safetensors or torch file. Raises InputError for one that is too large, damaged, or holds code."""
    start = check_weight_file(path)
    size = path.stat().st_size
    if size > LARGEST:
        raise InputError(
            f"{path} is {size / 1e9:.1f} GB: too large for changed keys and values.", hint="Is it a whole model?"
        )
    if is_safetensors(start):
        header, tensors = read_tensors(path)
        return Contents(path, _checked(tensors, path, 1), header)
    values = read_torch_file(path)
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds a {type(values).__name__}, not named tensors.", hint="It is no weight file.")
    return Contents(path, _checked(values, path, _DEEPEST), {})


def shown(key: object) -> str:
    """A key of a file for a message: quoted, cut, without control characters."""
    return repr(key[:80]) if isinstance(key, str) else f"a {type(key).__name__}"


def _checked(values: Mapping[Any, Any], path: Path, depth: int) -> dict[str, Any]:
    """The mapping with its tensors as fp32; raises InputError for values that no weight file has."""
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"{path} has a key that is no name, {shown(key)}.", hint="It is no weight file.")
        checked[key] = _value(value, f"{path}: {shown(key)}", path, depth)
    return checked


def _value(value: Any, where: str, path: Path, depth: int) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return _tensor(value, where)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if depth and isinstance(value, Mapping):
        return _checked(value, path, depth - 1)
    if depth and isinstance(value, list | tuple):
        return [_value(item, where, path, depth - 1) for item in value]
    raise InputError(f"{where} is a {type(value).__name__}, not a tensor.", hint="It is no weight file.")


def _tensor(value: torch.Tensor, where: str) -> torch.Tensor:
    import torch

    plain = value.detach()
    if plain.layout != torch.strided or plain.is_quantized:
        raise InputError(f"{where} is no plain tensor.", hint="It is no weight file of a diffusion model.")
    if not plain.is_floating_point():
        return plain
    try:
        full = plain.float()
    except NotImplementedError as error:
        raise InputError(f"{where} is in {plain.dtype}.", hint="Give the file in fp16, bf16 or fp32.") from error
    if not full.isfinite().all():
        raise InputError(f"{where} holds NaN or infinite values.", hint="The training that made it has failed.")
    return full
