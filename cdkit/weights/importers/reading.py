"""Untrusted weight files, read without running anything in them and without more memory than they are large."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError

if TYPE_CHECKING:
    import torch

# SDXL's full keys and values are 1.4 GB in fp32.
LARGEST = 4 << 30
_DEEPEST = 4
_SAFETENSORS_HEADER = 100 << 20


@dataclass(frozen=True)
class Contents:
    """A file's nested mapping of plain values and tensors, and the text header of a safetensors file."""

    path: Path
    values: Mapping[str, Any]
    header: Mapping[str, str]


def read_contents(path: Path) -> Contents:
    """Read a safetensors or torch file. Raises InputError for one that is too large, damaged, or holds code."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            start = handle.read(16)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Check the path.") from error
    if size > LARGEST:
        raise InputError(
            f"{path} is {size / 1e9:.1f} GB: too large for changed keys and values.", hint="Is it a whole model?"
        )
    if _is_safetensors(start, size):
        return _read_safetensors(path)
    values = _read_torch(path, size, start)
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds a {type(values).__name__}, not named tensors.", hint="It is no weight file.")
    return Contents(path, _checked(values, path, _DEEPEST), {})


def _is_safetensors(start: bytes, size: int) -> bool:
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and length <= min(size, _SAFETENSORS_HEADER)


def _read_safetensors(path: Path) -> Contents:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(str(path), framework="np") as handle:
            header = dict(handle.metadata() or {})
        values = load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="It may be truncated; download it again.") from error
    return Contents(path, _checked(values, path, 1), header)


def _read_torch(path: Path, size: int, start: bytes) -> Any:
    import torch

    if start.startswith(b"PK"):
        _check_archive(path, size)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0][:300]
        raise InputError(
            f"{path} was refused: it holds more than plain tensors, such as code. Nothing in it was run. ({reason})",
            hint="Ask its author for a safetensors file.",
        ) from error
    # Whatever a damaged or hostile file makes the reader raise, it is the file's fault.
    except Exception as error:
        raise InputError(f"{path} is no weight file that can be read: {error}", hint="Download it again.") from error


def _check_archive(path: Path, size: int) -> None:
    """torch stores tensors uncompressed, so an archive that unpacks to more than its size is none of torch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is a damaged archive: {error}", hint="Download it again.") from error
    if unpacked > size + (1 << 20):
        raise InputError(
            f"{path} was refused: its {size:,} bytes unpack to {unpacked:,}.", hint="This is no file that torch wrote."
        )


def _checked(values: Mapping[Any, Any], path: Path, depth: int) -> dict[str, Any]:
    """The mapping with its tensors as fp32; raises InputError for values that no weight file has."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"{path} has the key {key!r}, which is no name.", hint="It is no weight file.")
        found[key] = _value(value, f"{path}: {key}", path, depth)
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
    if plain.is_meta or plain.layout != torch.strided or plain.is_quantized:
        raise InputError(f"{where} is no plain tensor.", hint="It is no weight file of a diffusion model.")
    # A stride of zero makes a few bytes look like any number of values.
    if plain.numel() * plain.element_size() > plain.untyped_storage().nbytes():
        raise InputError(f"{where} says it is larger than the file holds.", hint="The file is damaged or hostile.")
    if not plain.is_floating_point():
        return plain
    full = plain.float()
    if not full.isfinite().all():
        raise InputError(f"{where} holds NaN or infinite values.", hint="The training that made it has failed.")
    return full
