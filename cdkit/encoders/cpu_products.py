"""Products on a CPU: linear layers and 1 × 1 convolutions of a frozen or training model through oneDNN.

PyTorch hands fp32 products to MKL, which leaves the wide vector units of some processors unused; oneDNN, which it
takes for larger convolutions, does not. The same sums in fp32, in another order.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

# Below so many multiplications, calling oneDNN takes longer than it saves.
LEAST_PRODUCT = 3_500_000


def fast_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """functional.linear, by oneDNN where that is faster: in fp32 on a CPU, from LEAST_PRODUCT multiplications on."""
    # torch's compiler cannot take oneDNN's product as it is called here, and chooses one itself.
    if torch.compiler.is_compiling():
        return functional.linear(input, weight, bias)
    small = input.numel() * len(weight) < LEAST_PRODUCT
    if small or weight.device.type != "cpu" or weight.dtype != torch.float32 or not _has_products():
        return functional.linear(input, weight, bias)
    multiply = _Product.apply if torch.is_grad_enabled() else _times_transposed
    rows: torch.Tensor = multiply(input.reshape(-1, input.shape[-1]), weight, bias)
    return rows.view(*input.shape[:-1], len(weight))


@cache
def _has_products() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _times_transposed(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """left (n, k) times right (m, k) transposed, plus bias (m,): (n, m)."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """Rows (n, k) by a weight (m, k): (n, m), with the gradients that somebody asks for."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        needs_rows, needs_weight, _ = context.needs_input_grad
        context.save_for_backward(rows if needs_weight else None, weight if needs_rows else None)
        return _times_transposed(rows, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = context.saved_tensors
        needs_rows, needs_weight, needs_bias = context.needs_input_grad
        return (
            _times_transposed(gradient, weight.t()) if needs_rows else None,
            _times_transposed(gradient.t(), rows.t()) if needs_weight else None,
            gradient.sum(dim=0) if needs_bias else None,
        )


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return fast_linear(input, self.weight, self.bias)


class _Pointwise(nn.Conv2d):
    """A convolution of single pixels, of pictures whose channels lie together: a product of pixels and channels."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            return super().forward(input)
        pixels = input.permute(0, 2, 3, 1)
        weight = self.weight.view(self.out_channels, self.in_channels)
        rows: torch.Tensor = _Product.apply(pixels.reshape(-1, self.in_channels), weight, self.bias)
        return rows.view(*pixels.shape[:-1], self.out_channels).permute(0, 3, 1, 2)


def use_fast_products(model: nn.Module) -> None:
    """Let a model on a CPU, in fp32 and for good, multiply through oneDNN, where PyTorch has it."""
    if not _has_products():
        return
    for module in model.modules():
        # Exactly these: a subclass may compute something else.
        if type(module) in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
            module.__class__ = _Linear
        elif type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = _Pointwise


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    """Whether the convolution looks at one pixel at a time, and at every one."""
    plain = convolution.kernel_size == convolution.stride == (1, 1) and convolution.padding in ((0, 0), 0)
    return plain and convolution.groups == 1
