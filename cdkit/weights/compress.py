"""The delta-compress stage: a delta's matrices as products of low rank, with the error measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import model_validator

from cdkit.config import ThreadedConfig, setting
from cdkit.datasets import Dataset
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context
from cdkit.storage import Folder
from cdkit.weights.delta import DELTA_NAME, LowRank, delta_path, load_delta, save_delta
from cdkit.weights.low_rank import approximate, relative_error

if TYPE_CHECKING:
    import torch


class CompressConfig(ThreadedConfig):
    """Which delta, and how small or how exact."""

    delta: str = setting(help="The delta: a folder or file.", argument=True, input="folder")
    rank: int | None = setting(None, "Rank of every matrix.", ge=1)
    max_error: float | None = setting(
        None, "Largest error of any matrix, relative; each takes the rank it needs.", gt=0, le=1
    )

    @model_validator(mode="after")
    def _one_goal(self) -> CompressConfig:
        if (self.rank is None) == (self.max_error is None):
            raise ValueError("give either rank or max_error")
        return self


def compress(config: CompressConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Write the compressed delta; a matrix whose factors would be no smaller stays whole."""
    delta = load_delta(config.delta)
    matrices = {name: change for name, change in delta.changes.items() if len(change.shape) == 2}
    with context.progress.task("low-rank factors", len(matrices), unit="matrices") as task:
        products = approximate(matrices, rank=config.rank, max_error=config.max_error, advance=lambda: task.advance(1))
    kept: dict[str, torch.Tensor | LowRank] = {
        name: product for name, product in products.items() if _smaller(product, matrices[name])
    }
    changes = {**delta.changes, **kept}
    settings = {**delta.settings, "compressed": {"rank": config.rank, "max_error": config.max_error}}
    save_delta(replace(delta, changes=changes, settings=settings), out / DELTA_NAME)
    found = load_delta(out.path).changes
    details = {
        "error": max((relative_error(change, found[name]) for name, change in matrices.items()), default=0.0),
        "rank": max((change.rank for change in found.values() if isinstance(change, LowRank)), default=0),
        "whole": sorted(set(matrices) - set(kept)),
        "bytes_before": delta_path(config.delta).stat().st_size,
        "bytes": (out / DELTA_NAME).stat().st_size,
    }
    return Dataset("delta", out.path, Counts(len(matrices), len(matrices)), details)


def _smaller(product: LowRank, change: torch.Tensor | LowRank) -> bool:
    """Whether the factors take fewer numbers than what is stored now."""
    now = change.up.numel() + change.down.numel() if isinstance(change, LowRank) else change.numel()
    return product.up.numel() + product.down.numel() < now
