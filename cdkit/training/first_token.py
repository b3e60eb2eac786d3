"""Keeps the start token's keys and values out of the gradient, with hooks and without attention processors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

_PROJECTIONS = re.compile(r"\.attn2\.to_[kv]$")


def detach_first_token(unet: Any) -> list[RemovableHandle]:
    """Cross-attention keys and values at position 0 are as before, but pass no gradient (Kumari et al. 2023, app. E).

    The first position is the start token's in every prompt: training on it would change all prompts alike. The
    hooks have no effect on what the U-Net computes; removing their handles ends them.
    """
    return [
        module.register_forward_hook(_detach)
        for name, module in unet.named_modules()
        if _PROJECTIONS.search(name) is not None
    ]


def _detach(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)
