"""Cross-attention's keys and values of a text, of all layers at once: one product instead of two for each layer."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

_PROJECTIONS = re.compile(r"\.attn2\.to_[kv]$")
# SDXL's matrices are large enough on their own, and side by side would take gigabytes.
MOST_NUMBERS = 64_000_000


class WithoutFirstGradient(torch.autograd.Function):
    """Leaves (n, positions, width) as it is; the gradient of position 0 is zero."""

    @staticmethod
    def forward(context: Any, output: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        kept = gradient.clone()
        kept[:, :1] = 0
        return kept


def detach_first_token(unet: Any) -> list[RemovableHandle]:
    """Cross-attention keys and values at position 0 are as before, but pass no gradient (Kumari et al. 2023, app. E).

    The first position is the start token's in every prompt: training on it would change all prompts alike. The
    hooks have no effect on what the U-Net computes; removing their handles ends them.
    """
    return [module.register_forward_hook(_detach) for module in _projections(unet)]


def _detach(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return WithoutFirstGradient.apply(output)  # type: ignore[no-any-return]


def _projections(unet: Any) -> list[nn.Linear]:
    return [module for name, module in unet.named_modules() if _PROJECTIONS.search(name) is not None]


class KeysAndValues:
    """The keys and values of all cross-attention layers of a U-Net, which takes those of `project` where it can.

    detaches_first: as detach_first_token.
    """

    def __init__(self, unet: Any, *, detaches_first: bool) -> None:
        self.layers, self.detaches_first = _projections(unet), detaches_first
        self.source: torch.Tensor | None = None
        self.parts: tuple[torch.Tensor, ...] = ()
        for place, layer in enumerate(self.layers):
            layer.forward = partial(self._part, place)  # type: ignore[method-assign]

    @staticmethod
    def fits(unet: Any) -> bool:
        """Whether they are small enough to lie side by side, and products alone."""
        layers = _projections(unet)
        return (
            bool(layers)
            and all(layer.bias is None for layer in layers)
            and sum(layer.weight.numel() for layer in layers) <= MOST_NUMBERS
        )

    def project(self, text: torch.Tensor) -> None:
        """Compute them for a text's features (n, positions, width), for the pass that follows with these features."""
        weights = torch.cat([layer.weight for layer in self.layers])
        outputs = self._detached(functional.linear(text, weights))
        self.source, self.parts = text, outputs.split([layer.out_features for layer in self.layers], dim=-1)

    def _part(self, place: int, text: torch.Tensor) -> torch.Tensor:
        if text is self.source:
            return self.parts[place]
        return self._detached(functional.linear(text, self.layers[place].weight))

    def _detached(self, output: torch.Tensor) -> torch.Tensor:
        return WithoutFirstGradient.apply(output) if self.detaches_first else output
