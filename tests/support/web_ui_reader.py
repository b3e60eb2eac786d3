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
    """Under which name, if not diffusers' own, a web UI looks for a module: `lora_unet_` and the original path."""
    if module == "conv_norm_out":  # about which A1111 has no rule
        return "lora_unet_out_0"
    return a1111_module("lora_unet_" + module.replace(".", "_")).replace("diffusion_model", "lora_unet")


_IN_RESNET = {
    "norm1": "in_layers_0",
    "conv1": "in_layers_2",
    "norm2": "out_layers_0",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def a1111_module(key: str) -> str:
    """The module of the original U-Net, dots as underscores, that A1111 takes a key's module for.

    Input block 1 + 3 block + layer, output block 3 block + layer; what no rule is about keeps its name, with
    `diffusion_model` for `lora_unet`.
    """
    found = re.fullmatch(r"lora_unet_(conv_in|conv_out)", key)
    if found:
        return {"conv_in": "diffusion_model_input_blocks_0_0", "conv_out": "diffusion_model_out_2"}[found[1]]
    found = re.fullmatch(r"lora_unet_time_embedding_linear_(\d)", key)
    if found:
        return f"diffusion_model_time_embed_{2 * int(found[1]) - 2}"
    found = re.fullmatch(r"lora_unet_(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)", key)
    if found:
        place, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        start = f"input_blocks_{1 + 3 * block + layer}" if place == "down" else f"output_blocks_{3 * block + layer}"
        inner = f"1_{rest}" if kind == "attentions" else f"0_{_IN_RESNET.get(rest, rest)}"
        return f"diffusion_model_{start}_{inner}"
    found = re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d+)_(.+)", key)
    if found:
        attention = found[1] == "attentions"
        inner = f"1_{found[3]}" if attention else f"{2 * int(found[2])}_{_IN_RESNET.get(found[3], found[3])}"
        return f"diffusion_model_middle_block_{inner}"
    found = re.fullmatch(r"lora_unet_down_blocks_(\d+)_downsamplers_0_conv", key)
    if found:
        return f"diffusion_model_input_blocks_{3 + 3 * int(found[1])}_0_op"
    found = re.fullmatch(r"lora_unet_up_blocks_(\d+)_upsamplers_0_conv", key)
    if found:
        return f"diffusion_model_output_blocks_{2 + 3 * int(found[1])}_{2 if int(found[1]) else 1}_conv"
    return key.replace("lora_unet", "diffusion_model")
