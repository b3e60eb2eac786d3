"""What trains: U-Net parameters picked by name, and modifier rows, both fp32; everything else frozen and small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cdkit.training.modifier_rows import RowsBesideTable

ROWS = "rows."


@dataclass(frozen=True)
class Trainables:
    """The U-Net's trained parameters by name, their fp32 values before training, and the modifier rows by tower."""

    weights: Mapping[str, nn.Parameter]
    base: Mapping[str, torch.Tensor]
    rows: Mapping[str, RowsBesideTable]

    def named(self) -> dict[str, nn.Parameter]:
        """Every trained parameter; rows as `rows.<tower>`."""
        return {**self.weights, **{f"{ROWS}{tower}": module.rows for tower, module in self.rows.items()}}

    def changes(self) -> dict[str, torch.Tensor]:
        """Fine-tuned minus base, fp32 on the CPU."""
        return {name: weight.detach().cpu() - self.base[name] for name, weight in self.weights.items()}

    def optimizer(self, learning_rate: float, token_learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
        """AdamW over weights and rows; rows have a rate of their own and never decay."""
        groups: list[dict[str, Any]] = []
        if self.weights:
            weights = list(self.weights.values())
            groups.append({"params": weights, "lr": learning_rate, "weight_decay": weight_decay})
        if self.rows:
            rows = [module.rows for module in self.rows.values()]
            groups.append({"params": rows, "lr": token_learning_rate, "weight_decay": 0.0})
        fused = next(iter(self.named().values())).device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def select_weights(
    unet: Any, names: Sequence[str], *, device: torch.device, dtype: torch.dtype
) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """Move a U-Net to the device, the named parameters fp32 and trainable, all others in `dtype` and frozen.

    Returns the named parameters, and their fp32 values on the CPU. They start from the fp32 weights the U-Net has
    now, not from rounded ones.
    """
    parameters = dict(unet.named_parameters())
    base = {name: parameters[name].detach().float().cpu().clone() for name in names}
    unet.requires_grad_(False).eval()
    move(unet, device, dtype)
    parameters = dict(unet.named_parameters())
    for name in names:
        parameters[name].data = base[name].to(device, copy=True)
        parameters[name].requires_grad_(True)
    return {name: parameters[name] for name in names}, base


def move(model: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model that will run under autocast, and cast its frozen weights to `dtype`.

    Norms stay fp32: autocast computes them so, and on a CPU takes no other weights.
    """
    model.to(device)
    for module in model.modules():
        if not isinstance(module, nn.LayerNorm | nn.GroupNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
