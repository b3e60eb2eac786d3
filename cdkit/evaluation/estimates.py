"""Estimates from images and how far to trust them: means with bootstrap intervals over prompts, and KID.

Images of one prompt are alike, so prompts are what is resampled. KID is the squared maximum mean discrepancy between
two sets of features under the cubic kernel (Binkowski et al. 2018, arXiv 1801.01401, section 4), in float64:
k(x, y) = (x·y / d + 1)³ and the unbiased estimate of MMD², which may be negative. Its standard error is a block
bootstrap: a pair of an image with itself, or with a second draw of its block, never counts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; low and high are None where one image, or one of a kind, allows none.

    resampled: what the bootstrap drew: `prompts`, `images` (when all have one prompt), or nothing.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    resampled: str = ""


def mean_with_interval(values: Tensor, blocks: Sequence[Hashable], *, resamples: int, seed: int) -> Estimate:
    """The mean of float64 [n] values with its percentile interval; `blocks` names each value's prompt.

    Prompts are drawn with replacement, with all their images (a cluster bootstrap). Raises ValueError for no value.
    """
    number = len(values)
    if number == 0:
        raise ValueError("an estimate needs at least one value")
    mean = float(values.double().mean())
    if number == 1:
        return Estimate(mean, None, None, 1)
    groups, resampled = block_numbers(blocks)
    size = int(groups.max()) + 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, groups, values.double())
    sizes = torch.zeros(size, dtype=torch.float64).index_add_(0, groups, torch.ones(number, dtype=torch.float64))
    weights = draw_weights(size, resamples, seed)
    means = (weights @ sums) / (weights @ sizes)
    low, high = percentile_interval(means)
    return Estimate(mean, low, high, number, resampled)


def block_numbers(blocks: Sequence[Hashable]) -> tuple[Tensor, str]:
    """The number of each item's block, in order of appearance; every item its own block when there is only one."""
    places = {block: place for place, block in enumerate(dict.fromkeys(blocks))}
    if len(places) == 1:
        return torch.arange(len(blocks)), "images"
    return torch.tensor([places[block] for block in blocks]), "prompts"


def draw_weights(size: int, resamples: int, seed: int) -> Tensor:
    """How often each of `size` blocks is drawn in each resample: float64 [resamples, size], rows sum to size."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(size, (resamples, size), generator=generator)
    weights = torch.zeros(resamples, size, dtype=torch.float64)
    return weights.scatter_add_(1, drawn, torch.ones(resamples, size, dtype=torch.float64))


def percentile_interval(replicates: Tensor) -> tuple[float, float]:
    """The middle 95 % of bootstrap replicates."""
    tail = (1 - CONFIDENCE) / 2
    bounds = torch.quantile(replicates.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(bounds[0]), float(bounds[1])


ROWS_AT_ONCE = 1024
LARGEST_BLOCKS = 1000


@dataclass(frozen=True)
class KernelDistance(Estimate):
    """KID, n of one set and reference_n of the other; standard_error: of the bootstrap, None where none can be had."""

    standard_error: float | None = None
    reference_n: int = 0


@dataclass(frozen=True)
class _KernelSums:
    """Kernel values of one pair of sets, summed between blocks, and the number of pairs in each sum."""

    values: Tensor
    pairs: Tensor

    def mean(self) -> Tensor:
        return self.values.sum() / self.pairs.sum()

    def resampled_mean(self, left: Tensor, right: Tensor) -> Tensor:
        """The mean between two sets under block weights [resamples, blocks], one per resample."""
        weighted: Tensor = ((left @ self.values) * right).sum(dim=1)
        pairs: Tensor = ((left @ self.pairs) * right).sum(dim=1)
        return weighted / pairs

    def resampled_own_mean(self, weights: Tensor) -> Tensor:
        """The mean within one set: pairs inside a block count once per draw of it, and never between two draws of it,
        which in truth would be two different blocks."""
        once = weights - weights**2
        weighted: Tensor = ((weights @ self.values) * weights).sum(dim=1) + once @ self.values.diagonal()
        pairs: Tensor = ((weights @ self.pairs) * weights).sum(dim=1) + once @ self.pairs.diagonal()
        return weighted / pairs


def unit_features(embeddings: Tensor) -> Tensor:
    """Embeddings of norm 1 scaled to norm √d, so that the kernel is (cosine + 1)³ whatever the encoder's width."""
    return embeddings.double() * math.sqrt(embeddings.shape[1])


def kernel_distance(
    features: Tensor,
    reference: Tensor,
    *,
    blocks: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """KID of float [n, d] features against float [m, d] reference features; n and m may differ.

    blocks: what each row of `features` is drawn with (its prompt); by default every row is drawn alone, as reference
    rows are. Raises ValueError for fewer than two rows on either side or for values that are not finite.
    """
    if len(features) < 2 or len(reference) < 2:
        raise ValueError(f"KID needs at least two images on each side, not {len(features)} and {len(reference)}")
    features, reference = features.double(), reference.double()
    if not (torch.isfinite(features).all() and torch.isfinite(reference).all()):
        raise ValueError("features hold NaN or infinite values")
    groups, resampled = block_numbers(list(blocks) if blocks is not None else list(range(len(features))))
    # Prompts with the same number of images make resamples comparable; the reference has no prompts.
    others = torch.arange(len(reference)) % min(len(reference), LARGEST_BLOCKS)
    ours = _sums(features, features, groups, groups, distinct=True)
    theirs = _sums(reference, reference, others, others, distinct=True)
    cross = _sums(features, reference, groups, others, distinct=False)
    value = float(ours.mean() + theirs.mean() - 2 * cross.mean())
    without_interval = KernelDistance(value, None, None, len(features), reference_n=len(reference))
    if resamples == 0 or len(ours.values) < 2:
        return without_interval
    left = draw_weights(len(ours.values), resamples, seed)
    right = draw_weights(len(theirs.values), resamples, seed + 1)
    replicates = (
        ours.resampled_own_mean(left) + theirs.resampled_own_mean(right) - 2 * cross.resampled_mean(left, right)
    )
    replicates = replicates[torch.isfinite(replicates)]
    if len(replicates) < 2:
        return without_interval
    low, high = percentile_interval(replicates)
    error = float(replicates.std())
    return KernelDistance(value, low, high, len(features), resampled, error, len(reference))


def cubic_kernel(left: Tensor, right: Tensor) -> Tensor:
    """k(x, y) = (x·y / d + 1)³ of every pair: float64 [n, d] and [m, d] to [n, m]."""
    kernel: Tensor = (left @ right.T / left.shape[1] + 1) ** 3
    return kernel


def _sums(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, *, distinct: bool) -> _KernelSums:
    """Kernel sums between blocks, a band of rows at a time; distinct: leave out each row's pair with itself."""
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    values, pairs = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for start in range(0, len(left), ROWS_AT_ONCE):
        band = slice(start, min(start + ROWS_AT_ONCE, len(left)))
        kernel = cubic_kernel(left[band], right)
        counted = torch.ones_like(kernel)
        if distinct:
            diagonal = torch.arange(band.start, band.stop)
            kernel[diagonal - band.start, diagonal] = 0
            counted[diagonal - band.start, diagonal] = 0
        for source, target in ((kernel, values), (counted, pairs)):
            by_column = torch.zeros(len(source), shape[1], dtype=torch.float64).index_add_(1, columns, source)
            target.index_add_(0, rows[band], by_column)
    return _KernelSums(values, pairs)
