"""The merge stage: several deltas into one that keeps each concept's words, in closed form."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.devices import choose_device
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import TEMPORARY_PREFIX, Folder
from cdkit.deltas.apply import add_tokens, check_fit
from cdkit.deltas.base_model import base_hash, cross_attention_names, load_base_model
from cdkit.deltas.delta import DELTA_NAME, ON_TOP_OF, Delta, LowRank, load_delta, matrix, save_delta
from cdkit.deltas.text_features import text_towers
from cdkit.merging.change_size import change_size, check_size
from cdkit.merging.closed_form import Factor, averaged, collapse, factorise, residual, solve
from cdkit.merging.config import MergeConfig
from cdkit.merging.conflicts import Conflict, Renamed, find_conflicts, rename_tokens
from cdkit.merging.constraints import Constraints, caption_rows, concept_constraints
from cdkit.tokens.sample import SampledCaptions, captions_folder, import_pools, sample_rows

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


FEWEST_CAPTIONS = 50
# Two features closer than this are one: they come in fp32 from different batches.
SAME = 1e-5
# A constraint off by more has not been met: the others contradict it.
UNMET = 1e-3


@dataclass(frozen=True)
class Problem:
    """A merge made ready: the base's matrices, the captions' factor, the places, and what is wanted there.

    wanted: for every matrix that a concept changed, what must be added to the base's output at each place, and the
    output wanted there, (places, outputs) each, fp64.
    """

    weights: Mapping[str, torch.Tensor]
    factor: Factor
    constraints: Constraints
    wanted: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


def merge(config: MergeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Merge deltas into delta.safetensors; its residual and drift are measured on the file as it is read back.

    Raises ConfigError for deltas that do not fit together or contradict each other, InputError for too few captions.
    """
    deltas = [load_delta(path) for path in config.deltas]
    names = [Path(path).name for path in config.deltas]
    concepts = tuple(rename_tokens(deltas))
    _check_families(deltas, names)
    sample = _captions(config, inputs, out, context)
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    _check_changes(pipeline, deltas, names, context)
    clock = time.monotonic()
    problem = _prepare(config, pipeline, concepts, sample, context)
    changes, conflicts = _solve(problem, config.soft)
    seconds = time.monotonic() - clock
    size = change_size(changes, deltas, problem.weights)
    check_size(size, context.progress.note)
    merged = _merged_delta(config, pipeline, concepts, names, changes)
    save_delta(merged, out / DELTA_NAME)
    measured = _measure(problem, load_delta(out.path))
    for conflict in conflicts:
        context.progress.note(f"Near-parallel words with different targets: {conflict}.")
    details = {
        "constraint_residual": measured["constraint_residual"],
        "drift": measured["drift"],
        "growth": size.growth,
        "condition": problem.factor.condition if problem.factor.condition < float("inf") else None,
        "conflicts": [conflict.as_json() for conflict in conflicts],
        "constraints": len(problem.constraints.places),
        "rank": max((change.rank for change in changes.values()), default=0),
        "tokens": [
            {"token": token.text, "was": concept.former[token.text], "delta": name}
            for concept, name in zip(concepts, names, strict=True)
            for token in concept.delta.tokens
        ],
        "prompts": list(merged.prompts),
        "captions": len(sample.captions),
        "base": config.base,
        "seconds": round(seconds, 3),
    }
    return Dataset("delta", out.path, Counts(len(deltas), len(deltas)), details)


def _captions(config: MergeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> SampledCaptions:
    if config.index is not None:
        folder = captions_folder(Path(config.index))
        sample = sample_rows(folder, config.captions_count, config.seed, context)
    else:
        # Not among what the stage owns: a refused merge leaves nothing that another attempt would have to replace.
        scratch = out.sub(f"{TEMPORARY_PREFIX}captions")
        try:
            folder = import_pools(inputs["captions"], config.pool, config.caption_column, scratch, context)
            sample = sample_rows(folder, config.captions_count, config.seed, context)
        finally:
            out.remove([scratch.path.name])
    if len(sample.captions) < FEWEST_CAPTIONS:
        raise InputError(
            f"{len(sample.captions)} different captions are too few to say what must not change.",
            hint=f"Give at least {FEWEST_CAPTIONS}, better 1,000 (--captions-count).",
        )
    return sample


def _check_families(deltas: Sequence[Delta], names: Sequence[str]) -> None:
    known: dict[str, tuple[tuple[int, ...], str]] = {}
    for delta, name in zip(deltas, names, strict=True):
        found = {key: tuple(change.shape) for key, change in delta.changes.items()}
        found |= {tower: (one.shape[1],) for token in delta.tokens for tower, one in token.rows.items()}
        clash = [known[key][1] for key, shape in found.items() if key in known and known[key][0] != shape]
        if clash:
            raise ConfigError(
                f"{clash[0]} and {name} were made on base models of different families.",
                hint="Deltas of one base model can be merged; train the concepts on the same one.",
            )
        known |= {key: (shape, name) for key, shape in found.items()}


def _check_changes(
    pipeline: DiffusionPipeline, deltas: Sequence[Delta], names: Sequence[str], context: Context
) -> None:
    matrices = set(cross_attention_names(pipeline.unet))
    here = base_hash(pipeline)
    for delta, name in zip(deltas, names, strict=True):
        check_fit(pipeline, delta)
        if delta.settings.get(ON_TOP_OF):
            raise ConfigError(
                f"{name} was trained on top of another delta; a merge takes deltas trained apart.",
                hint="Sample with both (--delta twice), or train its concept on the base model alone and merge.",
            )
        others = sorted(set(delta.changes) - matrices)
        if others:
            raise ConfigError(
                f"{name} changed more than the cross-attention keys and values: {', '.join(others[:3])}"
                + (f" and {len(others) - 3} more." if len(others) > 3 else "."),
                hint="Only keys and values have a closed-form merge; train the concepts jointly instead.",
            )
        if delta.base_hash and delta.base_hash != here:
            context.progress.note(f"{name} was made on other weights than this base model's; the merge may differ.")


def _prepare(
    config: MergeConfig,
    pipeline: DiffusionPipeline,
    concepts: tuple[Renamed, ...],
    sample: SampledCaptions,
    context: Context,
) -> Problem:
    parameters = dict(pipeline.unet.named_parameters())
    weights = {name: parameters[name].detach().float().cpu() for name in cross_attention_names(pipeline.unet)}
    with context.progress.task("text features of the captions", len(sample.captions), unit="captions") as task:
        rows = caption_rows(
            text_towers(pipeline),
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
    # All tokens into one text tower; captions were read before, so that none of them can contain one.
    tokens = [token for concept in concepts for token in concept.delta.tokens]
    undo = [add_tokens(pipeline, tower, tokens) for tower in text_towers(pipeline)] if tokens else []
    constraints = concept_constraints(
        text_towers(pipeline),
        [concept.delta for concept in concepts],
        end_of_text=config.end_of_text,
        apart=config.apart,
    )
    for put_back in undo:
        put_back()
    # What no concept changed stays as it is, though a token of theirs may leak into other words there too.
    changed = sorted(
        {name for concept in concepts for name, change in concept.delta.changes.items() if matrix(change).any()}
    )
    wanted = {layer: _wanted(layer, weights[layer], concepts, constraints) for layer in changed}
    return Problem(weights, factor, constraints, wanted)


def _wanted(
    layer: str, weight: torch.Tensor, concepts: Sequence[Renamed], constraints: Constraints
) -> tuple[torch.Tensor, torch.Tensor]:
    # One layer's weights in fp64 at a time: all of SDXL's would take gigabytes.
    base = weight.double()
    features, sources = constraints.features.double(), constraints.sources.double()
    added = (sources - features) @ base.T
    for number, concept in enumerate(concepts):
        change = concept.delta.changes.get(layer)
        if change is not None:
            own = [index for index, place in enumerate(constraints.places) if place.concept == number]
            added[own] += _through(sources[own], change)
    return added, features @ base.T + added


def _through(features: torch.Tensor, change: torch.Tensor | LowRank) -> torch.Tensor:
    """features @ changeᵀ in fp64."""
    if isinstance(change, LowRank):
        return features @ change.down.double().T @ change.up.double().T
    return features @ change.double().T


def _solve(problem: Problem, soft: float | None) -> tuple[dict[str, LowRank], tuple[Conflict, ...]]:
    """Every layer's change, and what the constraints disagree about; raises ConfigError when that has no solution."""
    groups = collapse(problem.constraints.features, SAME)
    directions = solve(problem.factor, averaged(problem.constraints.features.double(), groups), soft=soft)
    changes = {}
    for layer, (added, _) in problem.wanted.items():
        up, down = directions.change(averaged(added, groups).T)
        changes[layer] = LowRank(up.float(), down.float())
    conflicts = find_conflicts(problem.constraints, problem.wanted.values())
    if soft is None:
        worst = max((float(_residuals(problem, layer, changes[layer]).max()) for layer in changes), default=0.0)
        if worst > UNMET:
            raise ConfigError(
                f"The concepts contradict each other: a word would be off by {worst:.1%} of its value.",
                problems=[str(conflict) for conflict in conflicts[:5]],
                hint="Train with a modifier token per concept, or add --soft 1 to meet the words in the mean.",
            )
    return changes, conflicts


def _residuals(problem: Problem, layer: str, change: torch.Tensor | LowRank) -> torch.Tensor:
    """Per place ‖Ŵc − v‖/‖v‖ of a layer as the file says it: base plus change in fp32."""
    weight = problem.weights[layer] + matrix(change)
    return residual(weight, problem.constraints.features, problem.wanted[layer][1])


def _measure(problem: Problem, merged: Delta) -> dict[str, float]:
    """Largest residual of a constraint, and ‖ΔW Aᵀ‖/‖W₀ Aᵀ‖ over all layers for the caption rows A."""
    import torch

    worst, moved, whole = 0.0, 0.0, 0.0
    rows = problem.factor.rows.float()
    for layer in problem.wanted:
        change = merged.changes[layer]
        worst = max(worst, float(_residuals(problem, layer, change).max()))
        moved += float(torch.linalg.norm(matrix(change) @ rows.T)) ** 2
        whole += float(torch.linalg.norm(problem.weights[layer] @ rows.T)) ** 2
    return {"constraint_residual": worst, "drift": (moved / whole) ** 0.5 if whole else 0.0}


def _merged_delta(
    config: MergeConfig,
    pipeline: DiffusionPipeline,
    concepts: Sequence[Renamed],
    names: Sequence[str],
    changes: Mapping[str, LowRank],
) -> Delta:
    categories: dict[str, Any] = {}
    for concept in concepts:
        given = concept.delta.settings.get("concepts")
        categories |= given if isinstance(given, dict) else {}
    return Delta(
        method="merge",
        base=config.base,
        base_hash=base_hash(pipeline),
        changes=dict(changes),
        tokens=tuple(token for concept in concepts for token in concept.delta.tokens),
        prompts=tuple(dict.fromkeys(prompt for concept in concepts for prompt in concept.delta.prompts)),
        settings={
            "concepts": categories,
            "merged": [
                {"delta": name, "method": concept.delta.method, "tokens": concept.former}
                for concept, name in zip(concepts, names, strict=True)
            ],
            "ridge": config.ridge,
            "soft": config.soft,
            "end_of_text": config.end_of_text,
            "apart": config.apart,
            "edge_weight": config.edge_weight,
            "captions": config.captions_count,
            "seed": config.seed,
        },
    )
