"""diffusers' Custom Diffusion weights: whole matrices under the names of attention processors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cdkit.errors import InputError
from cdkit.weights.importers.found import Found, require_tensor
from cdkit.weights.importers.reading import Contents, shown

if TYPE_CHECKING:
    import torch

MARK = "custom_diffusion"
_KEY = re.compile(r"(.+\.attn2)\.processor\.(to_[qkv]|to_out)_custom_diffusion\.(weight|0\.weight|0\.bias)")


def read_processors(contents: Contents) -> Found:
    """`….attn2.processor.to_k_custom_diffusion.weight` and the like; `.bin` files also list empty self-attentions."""
    full: dict[str, torch.Tensor] = {}
    for key, value in contents.values.items():
        if isinstance(value, dict) and not value:
            continue
        found = _KEY.fullmatch(key)
        if found is None:
            raise InputError(
                f"{contents.path} holds {shown(key)}, which is no Custom Diffusion weight.", hint="Damaged file."
            )
        require_tensor(contents.path, key, value)
        full[f"{found[1]}.{found[2]}.{found[3]}"] = value
    return Found("diffusers", contents.path, full, header=contents.header)
