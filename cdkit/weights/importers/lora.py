"""LoRA files of a U-Net: PEFT's keys, kohya's, and the web UIs' whole differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.weights.delta import LowRank
from cdkit.weights.importers.found import Found, make_product, require_tensor
from cdkit.weights.importers.reading import Contents, shown

if TYPE_CHECKING:
    import torch

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


def read_lora(contents: Contents, kind: str) -> Found:
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
        return Found(kind, contents.path, changes=_peft(contents), header=contents.header)
    return Found(kind, contents.path, named=_kohya(contents), header=contents.header)


def _peft(contents: Contents) -> dict[str, torch.Tensor | LowRank]:
    parts: dict[str, dict[str, Any]] = {}
    for key, value in contents.values.items():
        end = next((one for one in _PEFT if key.endswith(one)), None)
        if end is None or not key.startswith("unet."):
            _refuse(contents, key)
        parts.setdefault(key.removeprefix("unet.").removesuffix(str(end)), {})[str(end)] = value
    return {
        f"{module}.weight": make_product(contents.path, module, one.get(_PEFT[1]), one.get(_PEFT[0]), _CONVOLUTION)
        for module, one in parts.items()
    }


def _kohya(contents: Contents) -> dict[tuple[str, str], torch.Tensor | LowRank]:
    parts: dict[str, dict[str, Any]] = {}
    found: dict[tuple[str, str], torch.Tensor | LowRank] = {}
    for key, value in contents.values.items():
        module, _, end = key.partition(".")
        if not module.startswith("lora_unet_"):
            _refuse(contents, key)
        if f".{end}" in _WHOLE:
            require_tensor(contents.path, key, value)
            found[module, _WHOLE[f".{end}"]] = value
        elif f".{end}" in _KOHYA:
            parts.setdefault(module, {})[f".{end}"] = value
        else:
            _refuse(contents, key)
    for module, one in parts.items():
        if (module, "weight") in found:
            raise InputError(f"{contents.path}: {shown(module)} has a whole change and factors.", hint="Damaged file.")
        product = make_product(contents.path, module, one.get(_KOHYA[1]), one.get(_KOHYA[0]), _CONVOLUTION)
        up = product.up * _strength(contents, module, one.get(_KOHYA[2]), product.rank)
        if not up.isfinite().all():
            raise InputError(f"{contents.path}: {shown(module)} has an absurd alpha.", hint="Damaged file.")
        found[module, "weight"] = LowRank(up, product.down)
    return found


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
