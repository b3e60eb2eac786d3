"""Conflicts between concepts: constraints that pull the same features apart, and modifier tokens of one name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError
from cdkit.core.text import same_word
from cdkit.deltas.delta import Delta, ModifierToken
from cdkit.merging.constraints import Constraints, substitution

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
    conflicts = [
        Conflict(
            constraints.places[one].label,
            constraints.places[other].label,
            1 - float(distances[one, other]) ** 2 / 2,
            float(steepness[one, other]),
        )
        for one, other in _pairs(constraints)
        if distances[one, other] < PARALLEL and relative[one, other] > 1e-3 and steepness[one, other] > STEEP
    ]
    return tuple(sorted(conflicts, key=lambda conflict: -conflict.steepness))


def _pairs(constraints: Constraints) -> Sequence[tuple[int, int]]:
    places = constraints.places
    return [
        (one, other)
        for one in range(len(places))
        for other in range(one + 1, len(places))
        if places[one].concept != places[other].concept
    ]


@dataclass(frozen=True)
class Renamed:
    """A delta whose tokens are unique among all, and its tokens' old names by their new ones."""

    delta: Delta
    former: dict[str, str]


def rename_tokens(deltas: Sequence[Delta]) -> list[Renamed]:
    """Give every token of the deltas a name of its own: `<new1>`, `<new2>`, … for those that share one.

    A name that only one delta uses stays. Raises ConfigError when two deltas bring the very same token: then they are
    the same delta, or one was trained on top of the other.
    """
    texts = [same_word(token.text) for delta in deltas for token in delta.tokens]
    shared = {text for text in texts if texts.count(text) > 1}
    _check_distinct([token for delta in deltas for token in delta.tokens if same_word(token.text) in shared])
    taken = set(texts) - shared
    result = []
    for delta in deltas:
        names = {}
        for token in delta.tokens:
            names[token.text] = token.text if same_word(token.text) not in shared else _free(taken)
            taken.add(same_word(names[token.text]))
        result.append(Renamed(_renamed(delta, names), {new: old for old, new in names.items()}))
    return result


def _free(taken: set[str]) -> str:
    number = 1
    while f"<new{number}>" in taken:
        number += 1
    return f"<new{number}>"


def _check_distinct(tokens: Sequence[ModifierToken]) -> None:
    for position, token in enumerate(tokens):
        for other in tokens[:position]:
            if same_word(other.text) == same_word(token.text) and other.has_rows_of(token):
                raise ConfigError(
                    f"Two deltas bring the same token {token.text} with the same embedding.",
                    hint="Give every concept's delta once, each trained on its own on the base model.",
                )


def _renamed(delta: Delta, names: dict[str, str]) -> Delta:
    change = substitution(names)
    return replace(
        delta,
        tokens=tuple(replace(token, text=names[token.text]) for token in delta.tokens),
        prompts=tuple(change(prompt) for prompt in delta.prompts),
    )
