"""LoRA files of a U-Net: PEFT's keys, kohya's, and the web UIs' whole differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.weights.delta import LowRank
from cdkit.weights.importers.found import Found
from cdkit.weights.importers.reading import Contents

if TYPE_CHECKING:
    import torch

_PEFT = (".lora_A.weight", ".lora_B.weight")
_KOHYA = (".lora_down.weight", ".lora_up.weight", ".alpha")
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
        f"{module}.weight": _product(contents, module, one.get(_PEFT[1]), one.get(_PEFT[0]))
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
            found[module, _WHOLE[f".{end}"]] = value
        elif f".{end}" in _KOHYA:
            parts.setdefault(module, {})[f".{end}"] = value
        else:
            _refuse(contents, key)
    for module, one in parts.items():
        product = _product(contents, module, one.get(_KOHYA[1]), one.get(_KOHYA[0]))
        alpha = one.get(_KOHYA[2])
        strength = 1.0 if alpha is None else float(alpha.reshape(-1)[0]) / product.rank
        found[module, "weight"] = LowRank(product.up * strength, product.down)
    return found


def _product(contents: Contents, module: str, up: Any, down: Any) -> LowRank:
    if up is None or down is None:
        raise InputError(f"{contents.path}: {module} has only one of its two factors.", hint="Damaged file.")
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or not up.numel():
        raise InputError(
            f"{contents.path}: {module} has factors {tuple(up.shape)} and {tuple(down.shape)}, not of a matrix.",
            hint="LoRAs of convolutions cannot be imported.",
        )
    return LowRank(up, down)


def _refuse(contents: Contents, key: str) -> None:
    if key.startswith(("text_encoder", "lora_te")):
        raise InputError(
            f"{contents.path} also changes the text encoder ({key[:80]}), which a delta cannot hold.",
            hint="Only changes of the U-Net's matrices can be imported.",
        )
    raise InputError(f"{contents.path} holds {key[:120]!r}, which cannot be imported.", hint="Damaged file, or DoRA.")
