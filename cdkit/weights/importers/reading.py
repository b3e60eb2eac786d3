"""Untrusted weight files as nested mappings of plain values and fp32 tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.file_kinds import check_weight_file, is_safetensors
from cdkit.weights.tensor_file import read_tensors
from cdkit.weights.torch_file import read_torch_file

if TYPE_CHECKING:
    import torch

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
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"{path} has a key that is no name, {shown(key)}.", hint="It is no weight file.")
        found[key] = _value(value, f"{path}: {shown(key)}", path, depth)
    return found


def _value(value: Any, where: str, path: Path, depth: int) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return _tensor(value, where)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if depth and isinstance(value, Mapping):
        return _checked(value, path, depth - 1)
    if depth and isinstance(value, list | tuple):
        return [_value(one, where, path, depth - 1) for one in value]
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
