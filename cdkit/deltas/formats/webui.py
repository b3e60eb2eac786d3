"""Whole differences of matrices, as A1111 and ComfyUI read them: lossless in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.shards import write_tensors
from cdkit.deltas.delta import Delta, matrix
from cdkit.deltas.formats.lora import family
from cdkit.deltas.formats.names import header, kohya_module, module_of, text_width

if TYPE_CHECKING:
    import torch

_ENDS = {"weight": "diff", "bias": "diff_b"}


def write_full_matrices(delta: Delta, path: Path, *, half: bool) -> None:
    """`lora_unet_<module>.diff` for every changed weight, `.diff_b` for a bias."""
    width = text_width(delta.changes)
    tensors: dict[str, torch.Tensor] = {}
    for name, change in delta.changes.items():
        module, kind = module_of(name)
        tensors[f"{kohya_module(module, width)}.{_ENDS[kind]}"] = matrix(change)
    write_tensors(path, tensors, header(delta, **family(width)), half=half)
