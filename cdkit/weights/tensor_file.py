"""Safetensors files, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import InputError
from cdkit.json_text import json_text
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    import torch


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
