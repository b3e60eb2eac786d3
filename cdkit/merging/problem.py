"""The problem a merge solves: what the captions keep in place, what each concept's words must come to, the answer.

And how good that is: whether the words are met, where they contradict each other, how large the change is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.errors import ConfigError
from cdkit.core.protocols import Context
from cdkit.deltas.apply import add_tokens
from cdkit.deltas.base_model import cross_attention_names
from cdkit.deltas.delta import Delta
from cdkit.deltas.families.table import denoiser_of
from cdkit.deltas.low_rank import LowRank, matrix, norm
from cdkit.deltas.text_features import text_towers
from cdkit.merging.closed_form import (
    Factor,
    averaged,
    collapse,
    factorise,
    prepare_fusion,
    residual,
    solve,
    solve_nearly,
    sum_of,
)
from cdkit.merging.config import MergeConfig
from cdkit.merging.constraints import Constraints, PromptReader, caption_rows, concept_constraints, prompt_features
from cdkit.tokens.sample import SampledCaptions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Change = torch.Tensor | LowRank
PARALLEL = 0.1
STEEP = 5.0
# Two features closer than this are one: they come in fp32 from different batches.
SAME = 1e-5
# A constraint off by more has not been met: the others contradict it.
UNMET = 1e-3


@dataclass(frozen=True)
class Problem:
    """A merge made ready: the base's matrices, the captions' factor, the places, and what is wanted there.

    wanted: for every matrix that a concept changed, what must be added to the base's output at each place, and the
    output wanted there, (places, outputs) each, fp64. prompts: the features of each delta's own prompts.
    """

    weights: Mapping[str, torch.Tensor]
    factor: Factor
    deltas: tuple[Delta, ...]
    constraints: Constraints
    wanted: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    prompts: tuple[torch.Tensor, ...]


def ordinary_factor(
    config: MergeConfig, pipeline: DiffusionPipeline, sample: SampledCaptions, context: Context
) -> Factor:
    """Read the captions' features off the pipeline, which has no new token yet, and factor them."""
    with context.progress.task("text features of the captions", len(sample.captions), unit="captions") as task:
        rows = caption_rows(
            PromptReader.of(pipeline),
            sample.captions.to_pylist(),
            sample.rows.tolist(),
            edge_weight=config.edge_weight,
            advance=task.advance,
        )
    factor = factorise(rows, ridge=config.ridge)
    if factor.deficient:
        context.progress.note(
            f"The {len(sample.captions):,} captions leave some of the {rows.shape[1]} dimensions of the text features "
            f"open; the ridge {config.ridge:g} decides there."
        )
    return factor


def prepare(config: MergeConfig, pipeline: DiffusionPipeline, deltas: Sequence[Delta], factor: Factor) -> Problem:
    """Read the concepts' places off the pipeline, and say what is wanted there. The pipeline is left as it was."""
    denoiser = denoiser_of(pipeline)
    parameters = dict(denoiser.named_parameters())
    weights = {name: parameters[name].detach().float().cpu() for name in cross_attention_names(denoiser)}
    # All tokens into one text tower; captions were read before, so that none of them can contain one.
    tokens = [token for delta in deltas for token in delta.tokens]
    undo = [add_tokens(pipeline, tower, tokens) for tower in text_towers(pipeline)] if tokens else []
    reader = PromptReader.of(pipeline)
    constraints = concept_constraints(reader, deltas, end_of_text=config.end_of_text, apart=config.apart)
    prompts = prompt_features(reader, deltas)
    for put_back in undo:
        put_back()
    # What no concept changed stays as it is, though a token of theirs may leak into other words there too.
    changed = sorted({name for delta in deltas for name, change in delta.changes.items() if matrix(change).any()})
    wanted = {layer: _wanted(layer, weights[layer], deltas, constraints) for layer in changed}
    return Problem(weights, factor, tuple(deltas), constraints, wanted, prompts)


def merge_changes(config: MergeConfig, problem: Problem) -> tuple[dict[str, Change], tuple[Conflict, ...]]:
    """Every layer's change by the way that was chosen, and what the constraints disagree about."""
    if config.way == "words":
        return solve_problem(config, problem)
    scale = 1 / len(problem.deltas) if config.way == "average" else 1.0
    fusion = prepare_fusion(problem.prompts, ridge=config.ridge) if config.way == "fusion" else None
    changes: dict[str, Change] = {}
    for layer in problem.wanted:
        nothing = torch.zeros_like(problem.weights[layer])
        parts = [matrix(delta.changes.get(layer, nothing)).float() for delta in problem.deltas]
        changes[layer] = (fusion.change(parts) if fusion else scale * sum_of(parts)).float()
    return changes, ()


def solve_problem(config: MergeConfig, problem: Problem) -> tuple[dict[str, Change], tuple[Conflict, ...]]:
    """Every layer's change, and what the constraints disagree about; raises ConfigError when that has no solution."""
    constraints = problem.constraints
    groups = collapse(constraints.features, SAME)
    rows = averaged(constraints.features.double(), groups)
    # Groups are in order of their first place, and exact places come first.
    exact = sum(leader < constraints.exact for leader in set(groups))
    if config.soft is None and exact < len(rows):
        directions = solve_nearly(problem.factor, rows[:exact], rows[exact:], weight=config.near_weight)
    else:
        directions = solve(problem.factor, rows, soft=config.soft)
    changes: dict[str, Change] = {}
    for layer, (added, _) in problem.wanted.items():
        up, down = directions.change(averaged(added, groups).T)
        changes[layer] = LowRank(up.float(), down.float())
    conflicts = find_conflicts(constraints, problem.wanted.values())
    if config.soft is None:
        worst = max((_worst_residual(problem, layer, changes[layer]) for layer in changes), default=0.0)
        if worst > UNMET:
            raise ConfigError(
                f"The concepts contradict each other: a word would be off by {worst:.1%} of its value.",
                problems=[str(conflict) for conflict in conflicts[:5]],
                hint="Train with a modifier token per concept, or add --soft 1 to meet the words in the mean.",
            )
    return changes, conflicts


def measure(problem: Problem, merged: Delta) -> dict[str, float]:
    """Largest residual of a constraint, and ‖ΔW Aᵀ‖/‖W₀ Aᵀ‖ over all layers for the caption rows A."""
    worst, moved, whole = 0.0, 0.0, 0.0
    rows = problem.factor.rows.float()
    for layer in problem.wanted:
        change = merged.changes[layer]
        worst = max(worst, _worst_residual(problem, layer, change))
        moved += float(torch.linalg.norm(matrix(change) @ rows.T)) ** 2
        whole += float(torch.linalg.norm(problem.weights[layer] @ rows.T)) ** 2
    return {"constraint_residual": worst, "drift": (moved / whole) ** 0.5 if whole else 0.0}


def _worst_residual(problem: Problem, layer: str, change: Change) -> float:
    """The largest ‖Ŵc − v‖/‖v‖ over the exact places of a layer as the file says it: base plus change in fp32."""
    exact = slice(problem.constraints.exact)
    weight = problem.weights[layer] + matrix(change)
    return float(residual(weight, problem.constraints.features[exact], problem.wanted[layer][1][exact]).max())


def _wanted(
    layer: str, weight: torch.Tensor, deltas: Sequence[Delta], constraints: Constraints
) -> tuple[torch.Tensor, torch.Tensor]:
    # One layer's weights in fp64 at a time: all of SDXL's would take gigabytes.
    base = weight.double()
    features, sources = constraints.features.double(), constraints.sources.double()
    added = (sources - features) @ base.T
    for number, delta in enumerate(deltas):
        change = delta.changes.get(layer)
        if change is not None:
            rows = [index for index, place in enumerate(constraints.places) if place.concept == number]
            added[rows] += _through(sources[rows], change)
    return added, features @ base.T + added


def _through(features: torch.Tensor, change: torch.Tensor | LowRank) -> torch.Tensor:
    """features @ changeᵀ in fp64."""
    if isinstance(change, LowRank):
        return features @ change.down.double().T @ change.up.double().T
    return features @ change.double().T


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
        return asdict(self) | {"similarity": round(self.similarity, 4), "steepness": steepness}

    def __str__(self) -> str:
        return f"{self.one} and {self.other} (similarity {self.similarity:.3f})"


def find_conflicts(
    constraints: Constraints, layers: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[Conflict, ...]:
    """Near-parallel places of different concepts with different targets, the steepest first.

    layers: for every matrix the wanted changes and the targets, (places, outputs) each.
    """
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
    places = constraints.places
    conflicts = [
        Conflict(places[i].label, places[j].label, 1 - float(distances[i, j]) ** 2 / 2, float(steepness[i, j]))
        for i, j in combinations(range(len(places)), 2)
        if places[i].concept != places[j].concept
        and distances[i, j] < PARALLEL
        and relative[i, j] > 1e-3
        and steepness[i, j] > STEEP
    ]
    return tuple(sorted(conflicts, key=lambda conflict: -conflict.steepness))


# Twice what ordinary merges come to, 3 to 10 times their deltas (what two concepts need to be told apart), and enough
# of the weights to be seen.
LARGE_GROWTH, LARGE_SHARE = 20.0, 0.2
# Where the change outweighs the weights, a prompt unlike the captions is drawn by it alone.
ABSURD_GROWTH, ABSURD_SHARE = 100.0, 1.0
_MORE = "Give more and other captions (--captions-count 1000), or a larger --ridge (0.1 is the default)."


@dataclass(frozen=True)
class ChangeSize:
    """growth: the change's norm over that of all its parts; share: over that of the weights it is added to."""

    growth: float
    share: float


def change_size(
    changes: Mapping[str, torch.Tensor | LowRank], parts: Iterable[Delta], weights: Mapping[str, torch.Tensor]
) -> ChangeSize:
    """Measure a merged change over all its matrices (Frobenius norms)."""
    merged = _total(norm(change) for change in changes.values())
    apart = _total(norm(change) for part in parts for change in part.changes.values())
    base = _total(float(weights[name].norm()) for name in changes)
    return ChangeSize(merged / apart if apart else 0.0, merged / base if base else 0.0)


def check_size(size: ChangeSize, note: Callable[[str], None]) -> None:
    """Note a change that is large; raises ConfigError for one that the base model would not survive."""
    said = (
        f"The merged change is {size.growth:.0f} times as large as its deltas' together, {size.share:.0%} of the "
        "weights: the captions leave open much of what should not change."
    )
    if size.growth > ABSURD_GROWTH and size.share > ABSURD_SHARE:
        raise ConfigError(said, hint=_MORE)
    if size.growth > LARGE_GROWTH and size.share > LARGE_SHARE:
        note(f"{said} {_MORE}")


def _total(norms: Iterable[float]) -> float:
    return math.sqrt(sum(value**2 for value in norms))
