"""Safetensors files: written whole or not at all, and read without trust in what they say of themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.file_kinds import check_weight_file, is_safetensors
from cdkit.json_text import json_text
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    import torch

# The header of SDXL's whole U-Net has 0.2 MB.
LARGEST_HEADER = 16 << 20
MOST_DIMENSIONS = 8
_DAMAGED = "It may be cut short or damaged: make it again, or download it again."


def read_tensor_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The texts in a safetensors file's header, and every tensor's shape by name; no tensor is read.

    Raises InputError for a file that is no safetensors file, is cut short, or whose header says what cannot be.
    """
    if not is_safetensors(check_weight_file(path)):
        raise InputError(f"{path} is no safetensors file.", hint="Files of other tools come in by cdkit delta import.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(size - 8, LARGEST_HEADER):
            what = "is cut short" if length <= LARGEST_HEADER else "is damaged"
            raise InputError(f"{path} {what}: its header should have {length:,} bytes.", hint=_DAMAGED)
        content = handle.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_distinct)
        texts = header.pop("__metadata__", {})
        shapes = {name: _shape(name, entry) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} has a damaged header: {_first_line(error)}", hint=_DAMAGED) from error
    if end > size:
        raise InputError(f"{path} is cut short: {size:,} of {end:,} bytes are there.", hint="Download it again.")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f"{path} has a damaged header: its texts are no texts.", hint=_DAMAGED)
    return texts, shapes


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The texts in a safetensors file's header, and its tensors as they are stored.

    Raises InputError as `read_tensor_header` does, and for offsets and types that do not fit.
    """
    from safetensors.torch import load_file

    texts, _ = read_tensor_header(path)
    try:
        return texts, load_file(str(path))
    except MemoryError:
        raise
    # Whatever a damaged or hostile file makes the library raise, it is the file's fault.
    except Exception as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}", hint=_DAMAGED) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it names something twice")
    return found


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    shape = entry["shape"]
    sound = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
    if not sound or not all(isinstance(side, int) and 0 <= side < 1 << 40 for side in shape):
        raise ValueError(f"{name[:80]!r} has an impossible shape")
    return tuple(shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], *, half: bool = False
) -> None:
    """Write tensors as fp32, or fp16 when `half`, atomically.

    Raises InputError, and writes nothing, when a value is NaN or infinite, or does not fit into fp16.
    """
    import torch
    from safetensors.torch import save_file

    stored = {}
    for name, tensor in tensors.items():
        full = tensor.detach().to("cpu").float()
        if not full.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values.", hint="Train again with a lower learning rate.")
        value = full.to(torch.float16) if half else full
        if not value.isfinite().all():
            raise InputError(
                f"{name} has values up to {float(full.abs().max()):.3g}: too large for fp16.",
                hint="Leave out --precision fp16.",
            )
        # A copy of its own: a view would carry the whole storage behind it.
        stored[name] = value.clone(memory_format=torch.contiguous_format)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(stored, str(temporary), metadata=dict(header))
        _sort_header(temporary)
        # safetensors makes files that only their owner may read.
        os.chmod(temporary, mode)


def _sort_header(path: Path) -> None:
    """Put a file's header texts in the order of their names: safetensors writes them in a random one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        texts = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(texts.items())), **header}
        content = json_text(ordered, compact=True).encode()
        # Spaces fill a header up; where the tensors lie is counted from its end.
        if len(content) <= length:
            file.seek(8)
            file.write(content.ljust(length))
