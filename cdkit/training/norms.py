# ruff: noqa: PLR0913, PLR0917 - a kernel is called with all it reads and writes
# mypy: disable-error-code="no-untyped-def, no-untyped-call, misc, untyped-decorator, import-untyped"
"""Group norms for pictures whose channels lie together (channels_last), with shift and SiLU in the same kernels.

PyTorch's own turn the layout round before and after, which a GPU's convolutions need as it was. Statistics are fp32.
Only for frozen norms: no gradient of weight, bias or shift. Wu and He 2018, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# A program reads so many rows at once, and so many in all where there are many.
ROWS_AT_ONCE, CHANNELS_AT_ONCE = 32, 64
ROWS_OF_A_PROGRAM, MOST_PARTS = 256, 256
PARTS_AT_ONCE, WIDEST_GROUP = 16, 128
_UNSPECIFIC = ["span", "parts", "width", "silu"]


@triton.jit
def _tile(start, rows, channels, at_once: tl.constexpr, block: tl.constexpr):
    """Rows and channels of a tile, which of its places exist, and where they lie."""
    row = start + tl.arange(0, at_once)
    channel = tl.program_id(2) * block + tl.arange(0, block)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    return channel, inside, (tl.program_id(0).to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]


@triton.jit
def _facts(shift, means, weight, bias, channel, channels, width, eps):
    """Per channel: shift, mean, reciprocal deviation, weight, bias. means: per group the mean, and that of squares."""
    exists = channel < channels
    group = (tl.program_id(0) * (channels // width) + channel // width) * 2
    moved = tl.load(shift + tl.program_id(0) * channels + channel, mask=exists, other=0.0).to(tl.float32)
    mean = tl.load(means + group, mask=exists, other=0.0)
    squares = tl.load(means + group + 1, mask=exists, other=1.0)
    deviation = tl.maximum(squares - mean * mean, 0.0)
    scale = tl.load(weight + channel, mask=exists, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=exists, other=0.0).to(tl.float32)
    return moved, mean, 1.0 / tl.sqrt(deviation + eps), scale, offset


@triton.jit
def _wanted(passed, normal, scale, offset, silu):
    """The gradient of the normalised values, from that of the output. silu: 1 where SiLU follows, else 0."""
    before = normal * scale + offset
    gate = 1.0 / (1.0 + tl.exp(-before))
    return passed * scale * tl.where(silu == 1, gate * (1.0 + before * (1.0 - gate)), 1.0)


@triton.jit
def _store_sums(sums, first, second, channel, channels, parts):
    place = sums + (tl.program_id(0) * parts + tl.program_id(1)) * 2 * channels + channel
    tl.store(place, first, mask=channel < channels)
    tl.store(place + channels, second, mask=channel < channels)


@triton.jit(do_not_specialize=_UNSPECIFIC)
def _forward_sums(x, shift, sums, rows, channels, span, parts, at_once: tl.constexpr, block: tl.constexpr):
    """Per part of the rows and channel: the sum of values and of squares."""
    first, second = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    channel = tl.program_id(2) * block + tl.arange(0, block)
    moved = tl.load(shift + tl.program_id(0) * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
    for start in range(0, span, at_once):
        _, inside, place = _tile(tl.program_id(1) * span + start, rows, channels, at_once, block)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value + moved[None, :], 0.0)
        first += tl.sum(value, axis=0)
        second += tl.sum(value * value, axis=0)
    _store_sums(sums, first, second, channel, channels, parts)


@triton.jit(do_not_specialize=_UNSPECIFIC)
def _means(sums, means, rows, channels, width, parts, at_once: tl.constexpr, block: tl.constexpr):
    """Per group, from the sums of its parts and channels: the means of both."""
    number, group = tl.program_id(0), tl.program_id(1)
    first, second = tl.zeros([at_once, block], tl.float32), tl.zeros([at_once, block], tl.float32)
    inner = tl.arange(0, block)
    for start in range(0, parts, at_once):
        part = start + tl.arange(0, at_once)
        exists = (part < parts)[:, None] & (inner < width)[None, :]
        place = (number * parts + part)[:, None] * 2 * channels + (group * width + inner)[None, :]
        first += tl.load(sums + place, mask=exists, other=0.0)
        second += tl.load(sums + place + channels, mask=exists, other=0.0)
    count = (rows * width).to(tl.float32)
    target = means + (number * (channels // width) + group) * 2
    tl.store(target, tl.sum(tl.sum(first, axis=1), axis=0) / count)
    tl.store(target + 1, tl.sum(tl.sum(second, axis=1), axis=0) / count)


@triton.jit(do_not_specialize=_UNSPECIFIC)
def _forward(
    x, shift, means, weight, bias, y, rows, channels, width, silu, eps, at_once: tl.constexpr, block: tl.constexpr
):
    channel, inside, place = _tile(tl.program_id(1) * at_once, rows, channels, at_once, block)
    moved, mean, inverse, scale, offset = _facts(shift, means, weight, bias, channel, channels, width, eps)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + moved[None, :]
    value = (value - mean[None, :]) * (inverse * scale)[None, :] + offset[None, :]
    value = tl.where(silu == 1, value / (1.0 + tl.exp(-value)), value)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_UNSPECIFIC)
def _backward_sums(
    dy, x, shift, means, weight, bias, sums, rows, channels, width, silu, eps, span, parts,
    at_once: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Per part of the rows and channel: the sum of the wanted gradients, and of those times the normalised values."""
    first, second = tl.zeros([block], tl.float32), tl.zeros([block], tl.float32)
    channel = tl.program_id(2) * block + tl.arange(0, block)
    moved, mean, inverse, scale, offset = _facts(shift, means, weight, bias, channel, channels, width, eps)
    for start in range(0, span, at_once):
        _, inside, place = _tile(tl.program_id(1) * span + start, rows, channels, at_once, block)
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + moved[None, :]
        normal = (value - mean[None, :]) * inverse[None, :]
        passed = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
        wanted = _wanted(passed, normal, scale[None, :], offset[None, :], silu)
        first += tl.sum(wanted, axis=0)
        second += tl.sum(wanted * normal, axis=0)
    _store_sums(sums, first, second, channel, channels, parts)


@triton.jit(do_not_specialize=_UNSPECIFIC)
def _backward(
    dy, x, shift, means, weight, bias, wanted_means, dx, rows, channels, width, silu, eps,
    at_once: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    channel, inside, place = _tile(tl.program_id(1) * at_once, rows, channels, at_once, block)
    moved, mean, inverse, scale, offset = _facts(shift, means, weight, bias, channel, channels, width, eps)
    group = (tl.program_id(0) * (channels // width) + channel // width) * 2
    first = tl.load(wanted_means + group, mask=channel < channels, other=0.0)
    second = tl.load(wanted_means + group + 1, mask=channel < channels, other=0.0)
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) + moved[None, :]
    normal = (value - mean[None, :]) * inverse[None, :]
    passed = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
    wanted = _wanted(passed, normal, scale[None, :], offset[None, :], silu)
    gradient = inverse[None, :] * (wanted - first[None, :] - normal * second[None, :])
    tl.store(dx + place, gradient.to(dx.dtype.element_ty), mask=inside)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        x: torch.Tensor,
        shift: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        groups: int,
        eps: float,
        silu: int,
    ) -> torch.Tensor:
        x, sizes = x.contiguous(memory_format=torch.channels_last), _Sizes(x, groups)
        sums = sizes.sums()
        _forward_sums[sizes.summing](x, shift, sums, sizes.rows, sizes.channels, sizes.span, sizes.parts, *_TILE)
        means = sizes.means(sums)
        y = torch.empty_like(x)
        _forward[sizes.writing](
            x, shift, means, weight, bias, y, sizes.rows, sizes.channels, sizes.width, silu, eps, *_TILE
        )
        context.save_for_backward(x, shift, weight, bias, means)
        context.sizes, context.eps, context.silu = sizes, eps, silu
        return y

    @staticmethod
    def backward(context: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, shift, weight, bias, means = context.saved_tensors
        sizes, eps, silu = context.sizes, context.eps, context.silu
        dy = dy.contiguous(memory_format=torch.channels_last)
        facts, shape = (shift, means, weight, bias), (sizes.rows, sizes.channels, sizes.width, silu, eps)
        sums = sizes.sums()
        _backward_sums[sizes.summing](dy, x, *facts, sums, *shape, sizes.span, sizes.parts, *_TILE)
        dx = torch.empty_like(x)
        _backward[sizes.writing](dy, x, *facts, sizes.means(sums), dx, *shape, *_TILE)
        return dx, None, None, None, None, None, None


_TILE = (ROWS_AT_ONCE, CHANNELS_AT_ONCE)


class _Sizes:
    """Of pictures (n, C, h, w) and groups of channels: how the kernels share the work."""

    def __init__(self, x: torch.Tensor, groups: int) -> None:
        self.number, self.channels = x.shape[0], x.shape[1]
        self.rows, self.width, self.groups = x.shape[2] * x.shape[3], x.shape[1] // groups, groups
        least = max(ROWS_OF_A_PROGRAM, -(-self.rows // MOST_PARTS))
        self.span = -(-least // ROWS_AT_ONCE) * ROWS_AT_ONCE
        self.parts = -(-self.rows // self.span)
        self.device = x.device
        blocks = -(-self.channels // CHANNELS_AT_ONCE)
        self.summing = (self.number, self.parts, blocks)
        self.writing = (self.number, -(-self.rows // ROWS_AT_ONCE), blocks)

    def sums(self) -> torch.Tensor:
        return torch.empty(self.number, self.parts, 2, self.channels, device=self.device)

    def means(self, sums: torch.Tensor) -> torch.Tensor:
        means = torch.empty(self.number, self.groups, 2, device=self.device)
        # One block for all widths that models have: each would be compiled on its own.
        block = max(WIDEST_GROUP, triton.next_power_of_2(self.width))
        _means[(self.number, self.groups)](
            sums, means, self.rows, self.channels, self.width, self.parts, PARTS_AT_ONCE, block
        )
        return means


def group_norm(
    x: torch.Tensor, norm: torch.nn.GroupNorm, *, silu: bool, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """The norm of x + shift, and SiLU of that where asked: pictures (n, C, h, w), shift (n, C); channels_last out."""
    if shift is None:
        shift = x.new_zeros(x.shape[0], x.shape[1])
    return _GroupNorm.apply(x, shift.contiguous(), norm.weight, norm.bias, norm.num_groups, norm.eps, int(silu))  # type: ignore[no-any-return]
