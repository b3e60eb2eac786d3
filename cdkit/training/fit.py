"""Fit: the batch, accumulation and checkpointing that bring a training into a card's memory, with the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from cdkit.core.errors import ConfigError
from cdkit.training.base_facts import BaseFacts
from cdkit.training.memory import GIB, device_memory, estimate_memory, gigabytes
from cdkit.training.plan import Plan

if TYPE_CHECKING:
    from cdkit.training.config import TrainConfig

SIZES = {"8GB": 8 * GIB, "12GB": 12 * GIB, "16GB": 16 * GIB, "24GB": 24 * GIB}
# Of a card's memory, what a desktop and the allocator's gaps leave.
USABLE = 0.92
# Below this batch, running blocks again costs less than small batches do.
LEAST_BATCH_WITHOUT = 2


def fitted(
    config: TrainConfig, plan: Plan, facts: BaseFacts, device: torch.device, note: Callable[[str], None]
) -> TrainConfig:
    """The config with the largest batch, and checkpointing only where it must be, whose estimate fits.

    Batch times accumulation stay what they are, so that the result is the same but for rounding. Raises ConfigError
    when nothing fits.
    """
    limit = _limit(config, device)
    if limit is None:
        return config
    least = None
    for candidate in ways(config):
        needed = estimate_memory(candidate, plan, facts, device).total
        least = needed if least is None else min(least, needed)
        if needed > limit:
            continue
        again = ", blocks run again for the gradient" if candidate.gradient_checkpointing else ""
        batch = f"batches of {candidate.recipe().batch_size} × {candidate.gradient_accumulation}"
        note(f"--fit {config.fit}: {batch}{again}; about {gigabytes(needed)}.")
        return candidate
    raise ConfigError(
        f"{config.method} on {config.base} does not fit into {config.fit}: the least that it takes is "
        f"{gigabytes(least or 0)}, of {gigabytes(limit)} that can be used.",
        hint="Use a lower --resolution, --precision bf16, a larger --fit, or --method textual-inversion, which trains "
        "least.",
    )


def ways(config: TrainConfig) -> Iterator[TrainConfig]:
    """The same training in smaller and smaller batches, then with blocks run again: the fastest first."""
    batch = config.recipe().batch_size
    total = batch * config.gradient_accumulation
    sizes = [size for size in range(batch, 0, -1) if total % size == 0]
    for again in (False, True):
        if config.gradient_checkpointing and not again:
            continue
        for size in sizes:
            if again or size >= min(LEAST_BATCH_WITHOUT, batch):
                yield config.model_copy(
                    update={
                        "batch_size": size,
                        "gradient_accumulation": total // size,
                        "gradient_checkpointing": again,
                    }
                )


def smaller_fit(config: TrainConfig, device: torch.device) -> str:
    """The size to name when the memory ran out: below the one that was asked for, or below what the device has."""
    memory = device_memory(device)
    limit = SIZES.get(config.fit or "", memory[1] if memory else None)
    smaller = [name for name, size in SIZES.items() if limit is None or size < limit]
    return smaller[-1] if smaller else min(SIZES, key=lambda name: SIZES[name])


def _limit(config: TrainConfig, device: torch.device) -> int | None:
    if config.fit is None:
        return None
    if config.fit != "auto":
        return int(SIZES[config.fit] * USABLE)
    memory = device_memory(device)
    return None if memory is None else int(min(memory) * USABLE)
