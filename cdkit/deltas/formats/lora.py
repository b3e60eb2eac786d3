"""LoRA files: PEFT's keys for diffusers, kohya's for the web UIs, whole differences too; how kohya names modules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.shards import write_tensors
from cdkit.deltas.delta import Delta, export_header
from cdkit.deltas.low_rank import LowRank, matrix
from cdkit.deltas.weight_files import Contents, ForeignFile, make_product, require_tensor, shown

if TYPE_CHECKING:
    import torch

SD2_WIDTH, SDXL_WIDTH = 1024, 2048
LAST_NORM = "conv_norm_out"
# The name that load_lora_weights looks for in a folder.
DIFFUSERS_LORA_NAME = "pytorch_lora_weights.safetensors"


def write_diffusers_lora(delta: Delta, products: Mapping[str, LowRank], path: Path, *, half: bool) -> None:
    """A LoRA for `pipe.load_lora_weights`: `<part>.<module>.lora_A.weight` (r, in) and `.lora_B.weight` (out, r)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, product in products.items():
        module, _ = module_of(name)
        up, down = shaped(product, delta.changes[name].shape)
        tensors[f"{delta.part}.{module}.lora_A.weight"] = down
        tensors[f"{delta.part}.{module}.lora_B.weight"] = up
    write_tensors(path, tensors, export_header(delta), half=half)


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
    write_tensors(path, tensors, export_header(delta, **facts, **family(width)), half=half)


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


_PEFT = (".lora_A.weight", ".lora_B.weight")
_KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
_CONVOLUTION = "LoRAs of convolutions cannot be imported."
_WHOLE = {".diff": "weight", ".diff_b": "bias"}


def lora_kind(values: Mapping[str, Any]) -> str | None:
    """`peft-lora`, `kohya-lora`, `webui-diff`, `lora_diffusion` (numbered layers), `diffusers-lora-old`, or None."""
    keys = list(values)
    if any(key.endswith(_PEFT) for key in keys):
        return "peft-lora"
    if any(key.endswith(tuple(_WHOLE)) for key in keys):
        return "webui-diff"
    if any(key.startswith(("unet:", "text_encoder:")) and key.endswith((":up", ":down")) for key in keys):
        return "lora_diffusion"
    if any("_lora.up.weight" in key or (".processor." in key and "lora" in key) for key in keys):
        return "diffusers-lora-old"
    return "kohya-lora" if any(key.endswith(_KOHYA[:2]) for key in keys) else None


def read_lora(contents: Contents, kind: str) -> ForeignFile:
    """A LoRA's changes; raises InputError for layouts that do not say which matrices they are for."""
    if kind == "lora_diffusion":
        raise InputError(
            f"{contents.path} is a LoRA of the lora_diffusion package (its layers have numbers, no names), not "
            "Custom Diffusion weights.",
            hint="Load it with that package (cloneofsimo/lora), or convert it to a named LoRA first.",
        )
    if kind == "diffusers-lora-old":
        raise InputError(
            f"{contents.path} is a LoRA in the layout of diffusers before 0.22.",
            hint="Load it with pipe.load_lora_weights and save it again with save_lora_weights.",
        )
    if kind == "peft-lora":
        part = "transformer" if any(key.startswith("transformer.") for key in contents.values) else "unet"
        return ForeignFile(kind, contents.path, changes=_peft(contents, part), header=contents.header, part=part)
    return ForeignFile(kind, contents.path, named=_kohya(contents), header=contents.header)


def _peft(contents: Contents, part: str) -> dict[str, torch.Tensor | LowRank]:
    parts: dict[str, dict[str, Any]] = {}
    for key, value in contents.values.items():
        end = key[-len(_PEFT[0]) :]
        if end not in _PEFT or not key.startswith(f"{part}."):
            _refuse(contents, key)
        parts.setdefault(key.removeprefix(f"{part}.").removesuffix(end), {})[end] = value
    down, up = _PEFT
    return {
        f"{module}.weight": make_product(contents.path, module, factors.get(up), factors.get(down), _CONVOLUTION)
        for module, factors in parts.items()
    }


def _kohya(contents: Contents) -> dict[tuple[str, str], torch.Tensor | LowRank]:
    parts: dict[str, dict[str, Any]] = {}
    changes: dict[tuple[str, str], torch.Tensor | LowRank] = {}
    for key, value in contents.values.items():
        module, _, end = key.partition(".")
        if not module.startswith("lora_unet_"):
            _refuse(contents, key)
        if f".{end}" in _WHOLE:
            require_tensor(contents.path, key, value)
            changes[module, _WHOLE[f".{end}"]] = value
        elif f".{end}" in _KOHYA:
            parts.setdefault(module, {})[f".{end}"] = value
        else:
            _refuse(contents, key)
    for module, factors in parts.items():
        if (module, "weight") in changes:
            raise InputError(f"{contents.path}: {shown(module)} has a whole change and factors.", hint="Damaged file.")
        product = make_product(contents.path, module, factors.get(_KOHYA[1]), factors.get(_KOHYA[0]), _CONVOLUTION)
        up = product.up * _strength(contents, module, factors.get(_KOHYA[2]), product.rank)
        if not up.isfinite().all():
            raise InputError(f"{contents.path}: {shown(module)} has an absurd alpha.", hint="Damaged file.")
        changes[module, "weight"] = LowRank(up, product.down)
    return changes


def _strength(contents: Contents, module: str, alpha: Any, rank: int) -> float:
    """What the product counts: alpha over rank, 1 without an alpha."""
    if alpha is None:
        return 1.0
    value = alpha.item() if hasattr(alpha, "numel") and alpha.numel() == 1 else alpha
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{contents.path}: the alpha of {shown(module)} is no number.", hint="Damaged file.")
    return value / rank


def _refuse(contents: Contents, key: str) -> None:
    if key.startswith(("text_encoder", "lora_te")):
        raise InputError(
            f"{contents.path} also changes the text encoder ({shown(key)}), which a delta cannot hold.",
            hint="Only changes of the U-Net's matrices can be imported.",
        )
    raise InputError(f"{contents.path} holds {shown(key)}, which cannot be imported.", hint="Damaged file, or DoRA.")


_ENDS = {"weight": "diff", "bias": "diff_b"}


def write_full_matrices(delta: Delta, path: Path, *, half: bool) -> None:
    """`lora_unet_<module>.diff` for every changed weight, `.diff_b` for a bias."""
    width = text_width(delta.changes)
    tensors: dict[str, torch.Tensor] = {}
    for name, change in delta.changes.items():
        module, kind = module_of(name)
        tensors[f"{kohya_module(module, width)}.{_ENDS[kind]}"] = matrix(change)
    write_tensors(path, tensors, export_header(delta, **family(width)), half=half)


def module_of(parameter: str) -> tuple[str, str]:
    """A parameter's module and whether it is its `weight` or `bias`."""
    module, _, kind = parameter.rpartition(".")
    return module, kind


def text_width(changes: Mapping[str, torch.Tensor | LowRank]) -> int:
    """The text width that the changed keys and values take, 0 when there is none: 768, 1024 or 2048 tell families."""
    for name, change in changes.items():
        if re.search(r"\.attn2\.to_[kv]\.weight$", name):
            return int(change.shape[1])
    return 0


def kohya_module(module: str, width: int) -> str:
    """A module's name in kohya's files: `lora_unet_` and the path with underscores.

    Stable Diffusion 1 and 2 are named as in diffusers, SDXL as in its original checkpoint; sd-scripts knows no other.
    The last norm, which no LoRA has, goes by its original name everywhere: A1111 turns every diffusers name into the
    original one but this.
    """
    original = width == SDXL_WIDTH or module == LAST_NORM
    return underscored(original_module(module) if original else module)


def underscored(module: str) -> str:
    """`lora_unet_` and a module's path with underscores."""
    return "lora_unet_" + module.replace(".", "_")


def original_module(module: str) -> str:
    """A module of a U-Net with two layers per block, as CompVis and Stability AI name it."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    for pattern, named in _IN_BLOCKS:
        match = re.match(pattern, module)
        if match:
            rest = module[match.end() :]
            inner = _IN_RESNET.get(rest, rest) if "resnets" in pattern else rest
            return named(*(int(number) for number in match.groups())) + inner
    return module


_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_IN_BLOCKS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"down_blocks\.(\d+)\.attentions\.(\d+)\.", lambda block, layer: f"input_blocks.{1 + 3 * block + layer}.1."),
    (r"down_blocks\.(\d+)\.resnets\.(\d+)\.", lambda block, layer: f"input_blocks.{1 + 3 * block + layer}.0."),
    (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda block: f"input_blocks.{3 + 3 * block}.0.op"),
    (r"mid_block\.attentions\.\d+\.", lambda: "middle_block.1."),
    (r"mid_block\.resnets\.(\d+)\.", lambda layer: f"middle_block.{2 * layer}."),
    (r"up_blocks\.(\d+)\.attentions\.(\d+)\.", lambda block, layer: f"output_blocks.{3 * block + layer}.1."),
    (r"up_blocks\.(\d+)\.resnets\.(\d+)\.", lambda block, layer: f"output_blocks.{3 * block + layer}.0."),
    # Behind the attention, which SDXL has in every block that has an upsampler.
    (r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda block: f"output_blocks.{2 + 3 * block}.2."),
)
