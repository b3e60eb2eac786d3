"""Adobe's Custom Diffusion files: `delta.ckpt` of the CompVis code, `delta.bin` of its diffusers code, and both
compressed. Values are whole fine-tuned weights; compressed ones, `{u, v}`, are products that add to the base's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.deltas.delta import ModifierToken
from cdkit.deltas.low_rank import LowRank
from cdkit.deltas.text_features import TOWERS
from cdkit.deltas.weight_files import Contents, ForeignFile, make_product, make_token, require_tensor, shown

if TYPE_CHECKING:
    import torch


_COMPVIS = re.compile(
    r"(?:model\.)?diffusion_model\.(input_blocks|middle_block|output_blocks)\.(?:([0-9]{1,2})\.)?1\."
    r"(transformer_blocks\.[0-9]{1,2}\.attn2\.(?:to_[qkv]\.weight|to_out\.0\.(?:weight|bias)))"
)
RANK_ZERO = "Adobe's compress.py writes rank 0 where a change is small: import the uncompressed delta instead."


def read_compvis(contents: Contents) -> ForeignFile:
    """`{'state_dict': {…attn2.to_k.weight…, 'embed': (n, width)}}`; its tokens have no names: `<new1>`, `<new2>`, …"""
    state = dict(contents.values["state_dict"])
    rows = state.pop("embed", None)
    named = {_parameter(contents, key): value for key, value in state.items()}
    if len(named) != len(state):
        raise InputError(f"{contents.path} holds a matrix twice, under two names.", hint="Damaged file.")
    full, changes = _weights(contents, named)
    tokens: list[ModifierToken] = []
    if rows is not None:
        require_tensor(contents.path, "embed", rows)
        table = rows.reshape(-1, rows.shape[-1])
        tokens = [make_token(contents.path, f"<new{n}>", {TOWERS[0]: row}) for n, row in enumerate(table, start=1)]
    return ForeignFile("adobe-compvis", contents.path, full, changes, tokens=tuple(tokens))


def read_diffusers(contents: Contents) -> ForeignFile:
    """`{'unet': {parameter: weight}, 'modifier_token': {token: row, or one row per text encoder}}`."""
    text_encoder = contents.values.get("text_encoder")
    if text_encoder is not None and not (isinstance(text_encoder, dict) and not text_encoder):
        raise InputError(
            f"{contents.path} holds a fine-tuned text encoder, which a delta cannot.",
            hint="Only U-Net changes and modifier tokens can be imported.",
        )
    full, changes = _weights(contents, contents.values["unet"])
    tokens = []
    words = contents.values.get("modifier_token")
    words = {} if words is None else words
    if not isinstance(words, dict):
        raise InputError(f"{contents.path}: 'modifier_token' names no tokens.", hint="Damaged file.")
    for text, value in words.items():
        rows = value if isinstance(value, list) else [value]
        if not 1 <= len(rows) <= len(TOWERS):
            raise InputError(f"{contents.path}: {shown(text)} has {len(rows)} embeddings.", hint="Damaged file.")
        tokens.append(make_token(contents.path, text, dict(zip(TOWERS, rows, strict=False))))
    return ForeignFile("adobe-diffusers", contents.path, full, changes, tokens=tuple(tokens))


def _parameter(contents: Contents, key: str) -> str:
    """The diffusers name of a CompVis parameter (Stable Diffusion 1 and 2: three layers to a block)."""
    match = _COMPVIS.fullmatch(key)
    if match is None:
        raise InputError(
            f"{contents.path} holds {shown(key)}, which is no cross-attention weight.",
            hint="A whole checkpoint is no delta; Adobe's get_deltas.py takes the delta out of one.",
        )
    place, number, rest = match[1], int(match[2] or 0), match[3]
    if place == "middle_block":
        return f"mid_block.attentions.0.{rest}"
    if place == "input_blocks":
        return f"down_blocks.{(number - 1) // 3}.attentions.{(number - 1) % 3}.{rest}"
    return f"up_blocks.{number // 3}.attentions.{number % 3}.{rest}"


def _weights(
    contents: Contents, values: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor | LowRank]]:
    """Whole weights, and compressed differences, by parameter name."""
    full: dict[str, torch.Tensor] = {}
    changes: dict[str, torch.Tensor | LowRank] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            if set(value) != {"u", "v"}:
                raise InputError(f"{contents.path}: {shown(name)} does not hold u and v.", hint="Damaged file.")
            changes[name] = make_product(contents.path, name, value["u"], value["v"], RANK_ZERO)
        else:
            require_tensor(contents.path, name, value)
            full[name] = value
    return full, changes


MARK = "custom_diffusion"
_KEY = re.compile(r"(.+\.attn2)\.processor\.(to_[qkv]|to_out)_custom_diffusion\.(weight|0\.weight|0\.bias)")


def read_processors(contents: Contents) -> ForeignFile:
    """`….attn2.processor.to_k_custom_diffusion.weight` and the like; `.bin` files also list empty self-attentions."""
    full: dict[str, torch.Tensor] = {}
    for key, value in contents.values.items():
        if isinstance(value, dict) and not value:
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            raise InputError(
                f"{contents.path} holds {shown(key)}, which is no Custom Diffusion weight.", hint="Damaged file."
            )
        require_tensor(contents.path, key, value)
        full[f"{match[1]}.{match[2]}.{match[3]}"] = value
    return ForeignFile("diffusers", contents.path, full, header=contents.header)
