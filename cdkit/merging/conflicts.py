"""Constraints that pull the same features to different values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.merging.constraints import Constraints

if TYPE_CHECKING:
    import torch

PARALLEL = 0.1
STEEP = 5.0


@dataclass(frozen=True)
class Conflict:
    """Two places of different concepts: cosine of their features, and how steeply the change must turn between them.

    steepness: difference of the wanted changes over the distance of the features, both relative; what a model does
    to ordinary words is about 1, and above 5 the merge pays with a large change of everything else.
    """

    one: str
    other: str
    similarity: float
    steepness: float

    def as_json(self) -> dict[str, Any]:
        steepness = None if self.steepness == float("inf") else round(self.steepness, 2)
        return {
            "one": self.one,
            "other": self.other,
            "similarity": round(self.similarity, 4),
            "steepness": steepness,
        }

    def __str__(self) -> str:
        return f"{self.one} and {self.other} (similarity {self.similarity:.3f})"


def find_conflicts(
    constraints: Constraints, layers: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[Conflict, ...]:
    """Near-parallel places of different concepts with different targets, the steepest first.

    layers: for every matrix the wanted changes and the targets, (places, outputs) each.
    """
    import torch

    features = constraints.features.double()
    norms = features.norm(dim=1, keepdim=True)
    units = features / norms
    differences = torch.zeros(len(units), len(units), dtype=torch.float64)
    strength = torch.zeros(len(units), dtype=torch.float64)
    for changes, targets in layers:
        differences += torch.cdist(changes / norms, changes / norms) ** 2
        strength += ((targets / norms) ** 2).sum(dim=1)
    distances = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist")
    relative = (differences / torch.maximum(strength[:, None], strength[None]).clamp_min(1e-300)).sqrt()
    steepness = relative / distances
    found = [
        Conflict(
            constraints.places[one].label,
            constraints.places[other].label,
            1 - float(distances[one, other]) ** 2 / 2,
            float(steepness[one, other]),
        )
        for one, other in _pairs(constraints)
        if distances[one, other] < PARALLEL and relative[one, other] > 1e-3 and steepness[one, other] > STEEP
    ]
    return tuple(sorted(found, key=lambda conflict: -conflict.steepness))


def _pairs(constraints: Constraints) -> Sequence[tuple[int, int]]:
    places = constraints.places
    return [
        (one, other)
        for one in range(len(places))
        for other in range(one + 1, len(places))
        if places[one].concept != places[other].concept
    ]
