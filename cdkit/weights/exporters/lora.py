"""LoRA files: PEFT's keys for diffusers, kohya's for the web UIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.weights.delta import Delta, LowRank
from cdkit.weights.exporters.names import SD2_WIDTH, SDXL_WIDTH, header, kohya_module, module_of, text_width
from cdkit.weights.tensor_file import write_tensors

if TYPE_CHECKING:
    import torch

# The name that load_lora_weights looks for in a folder.
DIFFUSERS_LORA_NAME = "pytorch_lora_weights.safetensors"


def write_diffusers_lora(delta: Delta, products: Mapping[str, LowRank], path: Path, *, half: bool) -> None:
    """A LoRA for `pipe.load_lora_weights`: `unet.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (out, r)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, product in products.items():
        module, _ = module_of(name)
        up, down = shaped(product, delta.changes[name].shape)
        tensors[f"unet.{module}.lora_A.weight"] = down
        tensors[f"unet.{module}.lora_B.weight"] = up
    write_tensors(path, tensors, header(delta), half=half)


def write_kohya_lora(delta: Delta, products: Mapping[str, LowRank], path: Path, *, half: bool) -> None:
    """A LoRA for A1111, Forge, ComfyUI and sd-scripts: `.lora_down.weight`, `.lora_up.weight`, `.alpha` = rank."""
    import torch

    width = text_width(delta.changes)
    rank = max((product.rank for product in products.values()), default=0)
    tensors: dict[str, torch.Tensor] = {}
    for name, product in products.items():
        module = kohya_module(module_of(name)[0], width)
        up, down = shaped(product, delta.changes[name].shape)
        tensors[f"{module}.lora_down.weight"] = down
        tensors[f"{module}.lora_up.weight"] = up
        # The product is scaled by alpha / rank.
        tensors[f"{module}.alpha"] = torch.tensor(float(product.rank))
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    write_tensors(path, tensors, header(delta, **facts, **family(width)), half=half)


def shaped(product: LowRank, shape: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """up and down of a weight of this shape: of a convolution's (out, in, h, w) the down part convolves."""
    if len(shape) == 2:
        return product.up, product.down
    return product.up[:, :, None, None], product.down.unflatten(1, tuple(shape[1:]))


def family(width: int) -> dict[str, str]:
    """What tells the web UIs which base models a file is for."""
    if width == SDXL_WIDTH:
        return {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}
    return {"ss_v2": str(width == SD2_WIDTH)}
