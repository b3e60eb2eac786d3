"""The layout of pictures in memory: channels together, as convolutions want them, where the norms can do so too.

On a GPU residual blocks then run norm, shift and SiLU as one, and convolutions leave their bias to the shift.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Between bf16 and fp32, relative to all values together: eight bits, a few times over.
TOLERANCE = 0.03


def lay_out(model: Any, device: torch.device, note: Callable[[str], None]) -> None:
    """Put a frozen model's pictures channels_last on a CPU, and on a GPU whose kernels for the norms work."""
    if device.type == "cuda":
        if any(norm.weight.requires_grad for norm in model.modules() if isinstance(norm, nn.GroupNorm)):
            return  # norms that train run as PyTorch's own, which want the other layout
        trouble = fused_norms_trouble(device)
        if trouble:
            note(f"Norms run one by one, which is slower: {trouble}")
            return
        use_fewer_kernels(model)
    elif device.type != "cpu":
        return
    model.to(memory_format=torch.channels_last)


def use_fewer_kernels(model: Any) -> None:
    """Let the frozen residual blocks, norms and gated layers of a diffusers model run in fewer kernels."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            module.forward = partial(_residual, module)
        elif isinstance(module, nn.GroupNorm) and not module.weight.requires_grad:
            module.forward = partial(_normed, module)  # type: ignore[method-assign]
        elif isinstance(module, GEGLU):
            module.forward = partial(_gated, module)


@lru_cache(maxsize=8)
def fused_norms_trouble(device: torch.device) -> str:
    """Why the fused norms cannot be used on a GPU; empty where they can: tried once, against PyTorch's own."""
    try:
        from cdkit.training.gated import geglu
        from cdkit.training.norms import group_norm

        random = torch.Generator(device).manual_seed(0)
        values = torch.randn(2, 64, 8, 8, device=device, generator=random)
        norm = nn.GroupNorm(32, 64, device=device).requires_grad_(False)
        half = deepcopy(norm).bfloat16()
        wanted, found = values.clone().requires_grad_(True), values.bfloat16().requires_grad_(True)
        with torch.enable_grad():
            halves = functional.silu(norm(wanted)).chunk(2, dim=-1)
            outputs = halves[0] * functional.gelu(halves[1]), geglu(group_norm(found, half, silu=True))
            for output in outputs:
                output.backward(values[..., : output.shape[-1]].to(output.dtype))
        assert wanted.grad is not None
        assert found.grad is not None
        pairs = ((outputs[0].detach(), outputs[1].detach()), (wanted.grad, found.grad))
        difference = max(float((one - other.float()).norm() / one.norm()) for one, other in pairs)
    except Exception as error:  # no Triton, no compiler, a card it does not know
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return "" if difference < TOLERANCE else f"ours differ from PyTorch's by {difference:.2g}"


def _is_plain(block: Any) -> bool:
    """Whether a residual block is of the kind that Stable Diffusion's models and autoencoders have, and frozen."""
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and isinstance(block.nonlinearity, nn.SiLU)
        and not block.skip_time_act
        and block.output_scale_factor == 1.0
        and not any(parameter.requires_grad for parameter in block.parameters())
    )


def _residual(
    block: Any, input_tensor: torch.Tensor, temb: torch.Tensor | None = None, *arguments: Any, **named: Any
) -> torch.Tensor:
    """diffusers' ResnetBlock2D, called as it is: from pictures (n, C, h, w) and the time's embedding (n, width)."""
    shift = block.conv1.bias.expand(len(input_tensor), -1)
    if temb is not None and block.time_emb_proj is not None:
        shift = shift + block.time_emb_proj(functional.silu(temb))
    hidden = _normed(block.norm1, input_tensor, silu=True)
    hidden = block.conv1._conv_forward(hidden, block.conv1.weight, None)
    hidden = _normed(block.norm2, hidden, silu=True, shift=shift)
    hidden = block.conv2(hidden)
    kept = input_tensor if block.conv_shortcut is None else block.conv_shortcut(input_tensor)
    return kept + hidden  # type: ignore[no-any-return]


def _normed(
    norm: nn.GroupNorm, values: torch.Tensor, *, silu: bool = False, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """The norm of values + shift, and SiLU of that where asked; off a GPU by PyTorch's own kernels."""
    if values.is_cuda and values.dim() == 4:
        from cdkit.training.norms import group_norm

        return group_norm(values, norm, silu=silu, shift=shift)
    moved = values if shift is None else values + shift[:, :, None, None]
    normal = functional.group_norm(moved, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return functional.silu(normal) if silu else normal


def _gated(layer: Any, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
    """diffusers' GEGLU, called as it is."""
    projected = layer.proj(hidden_states)
    if projected.is_cuda:
        from cdkit.training.gated import geglu

        return geglu(projected)
    value, gate = projected.chunk(2, dim=-1)
    return value * functional.gelu(gate)  # type: ignore[no-any-return]
