"""Confidence intervals by bootstrap over prompts: images of one prompt are alike, so prompts are what is resampled."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

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

    def as_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n, "resampled": self.resampled}


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
