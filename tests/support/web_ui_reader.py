"""Reads LoRA files as the web UIs document their rules: which key is which matrix, and what is added to it.

ComfyUI looks for every parameter of the U-Net under `lora_unet_` and its path with underscores, by diffusers' names
and by the original checkpoint's; `.lora_up @ .lora_down` counts times alpha / rank, `.diff` is added as it is. A1111
does the same after turning diffusers' names into the original ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file


def read_patches(path: Path, parameters: Iterable[str]) -> dict[str, torch.Tensor]:
    """What the file adds, by the U-Net's parameter names; AssertionError for keys that a web UI would leave out."""
    tensors = load_file(str(path))
    used: set[str] = set()
    patches: dict[str, torch.Tensor] = {}
    for name in parameters:
        if not name.endswith((".weight", ".bias")):
            continue
        module, _, kind = name.rpartition(".")
        for key in (f"lora_unet_{module.replace('.', '_')}", original_key(module)):
            found = _patch(tensors, key, kind, used)
            if found is not None:
                assert name not in patches, "one matrix under two keys"
                patches[name] = found
                break
    assert used == set(tensors), f"no web UI knows {sorted(set(tensors) - used)[:3]}"
    return patches


def _patch(tensors: Mapping[str, torch.Tensor], key: str, kind: str, used: set[str]) -> torch.Tensor | None:
    if kind == "weight" and f"{key}.lora_up.weight" in tensors:
        up, down = tensors[f"{key}.lora_up.weight"], tensors[f"{key}.lora_down.weight"]
        alpha = tensors.get(f"{key}.alpha")
        used |= {f"{key}.lora_up.weight", f"{key}.lora_down.weight", f"{key}.alpha"} & set(tensors)
        scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
        return up.float() @ down.float() * scale
    end = {"weight": "diff", "bias": "diff_b"}[kind]
    if f"{key}.{end}" in tensors:
        used.add(f"{key}.{end}")
        return tensors[f"{key}.{end}"].float()
    return None


def original_key(module: str) -> str:
    """A1111's rule for attention modules: input block 1 + 3 block + layer, output block 3 block + layer."""
    key = "lora_unet_" + module.replace(".", "_")
    key = re.sub(
        r"lora_unet_down_blocks_(\d+)_attentions_(\d+)_(.+)",
        lambda found: f"lora_unet_input_blocks_{1 + 3 * int(found[1]) + int(found[2])}_1_{found[3]}",
        key,
    )
    key = re.sub(r"lora_unet_mid_block_attentions_(\d+)_(.+)", r"lora_unet_middle_block_1_\2", key)
    return re.sub(
        r"lora_unet_up_blocks_(\d+)_attentions_(\d+)_(.+)",
        lambda found: f"lora_unet_output_blocks_{3 * int(found[1]) + int(found[2])}_1_{found[3]}",
        key,
    )
