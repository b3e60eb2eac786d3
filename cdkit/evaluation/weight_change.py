"""Rate of change of weights: how far training moved each parameter, and which kind of layer moved most.

Custom Diffusion, section 3.1 and Figure 3: Δ_l = ‖θ'_l - θ_l‖ / ‖θ_l‖, averaged over the layers of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

GROUPS = ("cross-attention", "self-attention", "other", "text encoder")


@dataclass(frozen=True)
class ParameterChange:
    """One parameter: its name, group, number of values, and rate of change; None where its base is all zeros."""

    name: str
    group: str
    values: int
    rate: float | None


@dataclass(frozen=True)
class GroupChange:
    """One group: its parameters, values, how many of them moved, and the mean and largest rate with its parameter."""

    group: str
    parameters: int
    values: int
    moved: int
    mean_rate: float
    largest_rate: float
    largest: str

    def as_json(self) -> dict[str, Any]:
        return self.__dict__.copy()


def group_of(name: str) -> str:
    """The paper's group of a U-Net parameter; diffusers calls cross-attention attn2, self-attention attn1."""
    parts = name.split(".")
    return "cross-attention" if "attn2" in parts else "self-attention" if "attn1" in parts else "other"


def rate_of_change(base: Tensor, tuned: Tensor) -> float | None:
    """‖tuned - base‖ / ‖base‖ in float64; None for a base of zeros, which has no rate."""
    norm = float(base.double().norm())
    return float((tuned.double() - base.double()).norm()) / norm if norm > 0 else None


def parameter_changes(pairs: Iterable[tuple[str, str, Tensor, Tensor]]) -> list[ParameterChange]:
    """The change of every (name, group, base, tuned)."""
    return [
        ParameterChange(name, group, base.numel(), rate_of_change(base, tuned)) for name, group, base, tuned in pairs
    ]


def group_changes(changes: Sequence[ParameterChange]) -> list[GroupChange]:
    """One summary per group that has parameters, in the paper's order; parameters without a rate do not count."""
    found = []
    for group in GROUPS:
        own = [change for change in changes if change.group == group and change.rate is not None]
        if not own:
            continue
        largest = max(own, key=lambda change: change.rate or 0.0)
        rates = [change.rate or 0.0 for change in own]
        found.append(
            GroupChange(
                group=group,
                parameters=len(own),
                values=sum(change.values for change in own),
                moved=sum(rate > 0 for rate in rates),
                mean_rate=sum(rates) / len(rates),
                largest_rate=max(rates),
                largest=largest.name,
            )
        )
    return found
