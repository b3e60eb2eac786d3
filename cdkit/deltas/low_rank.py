"""Changes as products: of matrices, their norms, and the best approximation of a rank or error (Eckart/Young 1936)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Singular values below this part of the largest are the rounding of fp32.
ROUNDING = 1e-6
# A few bytes of factors can stand for any number of values. The largest matrix of SDXL's U-Net, a convolution, has
# 29 million.
LARGEST_MATRIX = 1 << 26


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix as a product: up (outputs, rank) times down (rank, inputs).

    Raises ValueError when the two do not fit, or stand for a matrix larger than any U-Net has.
    """

    up: torch.Tensor
    down: torch.Tensor

    def __post_init__(self) -> None:
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 2 or len(down) != 2 or up[1] != down[0] or 0 in (*up, *down):
            raise ValueError(f"factors of the shapes {up} and {down} do not fit")
        if up[0] * down[1] > LARGEST_MATRIX:
            raise ValueError(f"factors of the shapes {up} and {down} stand for {up[0] * down[1]:,} values")

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.up.shape[0]), int(self.down.shape[1]))


def matrix(change: torch.Tensor | LowRank) -> torch.Tensor:
    """The change as a full tensor."""
    return change.up @ change.down if isinstance(change, LowRank) else change


def stored_numbers(change: torch.Tensor | LowRank) -> int:
    """How many numbers a change takes as it is stored."""
    return change.up.numel() + change.down.numel() if isinstance(change, LowRank) else change.numel()


def norm(change: torch.Tensor | LowRank) -> float:
    """‖ΔW‖ (Frobenius) in fp64; of a product from its factors: the trace of (UᵀU)(DDᵀ)."""
    import torch

    if isinstance(change, LowRank) and change.rank <= min(change.shape):
        up, down = change.up.double(), change.down.double()
        return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
    return float(torch.linalg.norm(matrix(change).double()))


def factors(change: torch.Tensor | LowRank) -> tuple[LowRank, torch.Tensor]:
    """The change as a product of full rank, and its singular values (rank), descending.

    up and down carry the root of each singular value, so that any first r columns and rows are the best rank r, and
    both have the same scale. Values at the level of fp32 rounding are left out.
    """
    import torch

    if isinstance(change, LowRank):
        left, left_triangle = torch.linalg.qr(change.up.double())
        right, right_triangle = torch.linalg.qr(change.down.double().T)
        inner, values, outer = torch.linalg.svd(left_triangle @ right_triangle.T, full_matrices=False)
        up, down = left @ inner, outer @ right.T
    else:
        up, values, down = _svd(change)
    kept = max(int((values > ROUNDING * values[0]).sum()), 1) if len(values) else 0
    roots = values[:kept].sqrt()
    return LowRank((up[:, :kept] * roots).float(), (roots[:, None] * down[:kept]).float()), values[:kept]


def _svd(change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SVD by the eigenvalues of the smaller Gram matrix in fp64: several times faster, as exact as fp32 needs."""
    import torch

    full = change.double()
    if full.shape[0] < full.shape[1]:
        right, values, left = _svd(change.T)
        return left.T, values, right.T
    squares, vectors = torch.linalg.eigh(full.T @ full)
    values = squares.flip(0).clamp_min(0).sqrt()
    vectors = vectors.flip(1)
    left = full @ vectors / values.clamp_min(1e-300)
    return left, values, vectors.T


def cut(change: LowRank, rank: int) -> LowRank:
    """The first `rank` parts of factors made by `factors`."""
    return LowRank(change.up[:, :rank].contiguous(), change.down[:rank].contiguous())


def padded(change: LowRank, rank: int) -> LowRank:
    """The same product with zeros up to `rank`: some readers expect one rank for all matrices."""
    from torch.nn.functional import pad

    more = rank - change.rank
    return LowRank(pad(change.up, (0, more)), pad(change.down, (0, 0, 0, more)))


def rank_for(values: torch.Tensor, max_error: float) -> int:
    """The smallest rank whose error ‖ΔW − BA‖_F/‖ΔW‖_F is at most max_error, by the singular values (n)."""
    energy = (values**2).flip(0).cumsum(0).flip(0)
    allowed = max_error**2 * float(energy[0]) if len(energy) else 0.0
    return max(int((energy > allowed).sum()), 1)


def relative_error(change: torch.Tensor | LowRank, approximation: torch.Tensor | LowRank) -> float:
    """‖ΔW − BA‖_F / ‖ΔW‖_F; 0 for a change that is zero itself. Two products are compared by their factors."""
    size = norm(change)
    return _distance(change, approximation) / size if size else 0.0


def _distance(first: torch.Tensor | LowRank, second: torch.Tensor | LowRank) -> float:
    import torch

    if (
        not isinstance(first, LowRank)
        or not isinstance(second, LowRank)
        or first.rank + second.rank > min(first.shape)
    ):
        return float((matrix(first).double() - matrix(second).double()).norm())
    # one − other is itself a product: its norm is that of the two triangles, exact also where the two are near.
    left = torch.linalg.qr(torch.cat([first.up.double(), -second.up.double()], dim=1), mode="r").R
    right = torch.linalg.qr(torch.cat([first.down.double(), second.down.double()]).T, mode="r").R
    return float((left @ right.T).norm())


def approximate(
    changes: Mapping[str, torch.Tensor | LowRank],
    *,
    rank: int | None = None,
    max_error: float | None = None,
    uniform: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, LowRank]:
    """Every matrix as a product: of this rank, of the smallest rank that keeps this error, or of its own rank.

    uniform: one rank for all, the largest that any needs, with zeros where a matrix has less. Raises ConfigError for
    a change that is no matrix.
    """
    products: dict[str, tuple[LowRank, int]] = {}
    for name, change in changes.items():
        if len(change.shape) != 2:
            raise ConfigError(f"{name} is no matrix: it has no low rank.", hint="Export the full matrices instead.")
        product, values = factors(change)
        needed = len(values) if max_error is None else rank_for(values, max_error)
        products[name] = (product, needed if rank is None else min(rank, len(values)))
        advance()
    largest = max((needed for _, needed in products.values()), default=0)
    if uniform:
        return {name: padded(cut(product, largest), largest) for name, (product, _) in products.items()}
    return {name: cut(product, needed) for name, (product, needed) in products.items()}
