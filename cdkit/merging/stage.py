"""The merge stage: several deltas into one that keeps each concept's words, in closed form."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.fingerprints import Input
from cdkit.core.machine import choose_device
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import TEMPORARY_PREFIX, Folder
from cdkit.core.text import same_word
from cdkit.deltas.apply import check_fit
from cdkit.deltas.base_model import base_hash, cross_attention_names, load_base_model, refuse_earlier_edition
from cdkit.deltas.delta import DELTA_NAME, ON_TOP_OF, Delta, ModifierToken, load_delta, save_delta
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.low_rank import LowRank
from cdkit.merging.config import MergeConfig
from cdkit.merging.constraints import substitution
from cdkit.merging.problem import change_size, check_size, measure, merge_changes, ordinary_factor, prepare
from cdkit.tokens.sample import SampledCaptions, captions_folder, import_pools, sample_rows

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline


FEWEST_CAPTIONS = 50


def merge(config: MergeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Merge deltas into delta.safetensors; its residual and drift are measured on the file as it is read back.

    Raises ConfigError for deltas that do not fit together or contradict each other, InputError for too few captions.
    """
    deltas = [load_delta(path) for path in config.deltas]
    names = [Path(path).name for path in config.deltas]
    concepts = tuple(rename_tokens(deltas))
    _check_families(deltas, names)
    if any(delta.gated for delta in deltas):
        return _side_by_side(config, concepts, names, out, context)
    sample = _captions(config, inputs, out, context)
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    _check_changes(pipeline, deltas, names, context)
    if family_of(pipeline).merge == "sampled":
        return _merge_by_samples(config, pipeline, concepts, names, sample, out, context)
    clock = time.monotonic()
    factor = ordinary_factor(config, pipeline, sample, context)
    problem = prepare(config, pipeline, [concept.delta for concept in concepts], factor)
    changes, conflicts = merge_changes(config, problem)
    seconds = time.monotonic() - clock
    size = change_size(changes, deltas, problem.weights)
    check_size(size, context.progress.note)
    merged = _merged_delta(config, pipeline, concepts, names, changes)
    save_delta(merged, out / DELTA_NAME)
    measured = measure(problem, load_delta(out.path))
    for conflict in conflicts:
        context.progress.note(f"Near-parallel words with different targets: {conflict}.")
    details = {
        "constraint_residual": measured["constraint_residual"],
        "drift": measured["drift"],
        "growth": size.growth,
        "condition": problem.factor.condition if problem.factor.condition < float("inf") else None,
        "conflicts": [conflict.as_json() for conflict in conflicts],
        "constraints": len(problem.constraints.places),
        "rank": max((change.rank for change in changes.values() if isinstance(change, LowRank)), default=0),
        "tokens": _tokens_as_json(concepts, names),
        "prompts": list(merged.prompts),
        "captions": len(sample.captions),
        "base": config.base,
        "seconds": round(seconds, 3),
    }
    return Dataset("delta", out.path, Counts(len(deltas), len(deltas)), details)


def _merge_by_samples(
    config: MergeConfig,
    pipeline: DiffusionPipeline,
    concepts: Sequence[Renamed],
    names: Sequence[str],
    sample: SampledCaptions,
    out: Folder,
    context: Context,
) -> Dataset:
    """The merge of models whose text keys and values read more than text."""
    from cdkit.merging.sampled import merge_by_samples

    clock, deltas = time.monotonic(), [concept.delta for concept in concepts]
    solved = merge_by_samples(config, pipeline, deltas, sample, context)
    merged = _merged_delta(config, pipeline, concepts, names, solved.changes)
    save_delta(merged, out / DELTA_NAME)
    context.progress.note(
        f"What a concept's words give is off by {solved.residual:.1%} of its value in the mean where it was drawn "
        f"({solved.worst_residual:.1%} at most; plain averaging: {solved.average_residual:.1%}): text and picture "
        "share one attention here, so that no merge is exact."
    )
    details = {
        "constraint_residual": solved.residual,
        "worst_residual": solved.worst_residual,
        "average_residual": solved.average_residual,
        "drift": solved.drift,
        "constraints": solved.rows,
        "rank": max((change.rank for change in solved.changes.values()), default=0),
        "tokens": _tokens_as_json(concepts, names),
        "prompts": list(merged.prompts),
        "captions": len(sample.captions),
        "base": config.base,
        "seconds": round(time.monotonic() - clock, 3),
    }
    return Dataset("delta", out.path, Counts(len(deltas), len(deltas)), details)


def _tokens_as_json(concepts: Sequence[Renamed], names: Sequence[str]) -> list[dict[str, str]]:
    """Which token came from which delta, and what it was called there."""
    return [
        {"token": token.text, "was": concept.former[token.text], "delta": name}
        for concept, name in zip(concepts, names, strict=True)
        for token in concept.delta.tokens
    ]


def _side_by_side(
    config: MergeConfig, concepts: Sequence[Renamed], names: Sequence[str], out: Folder, context: Context
) -> Dataset:
    """Put gated deltas side by side: each acts at its own words alone, so that no captions are needed to solve it.

    Raises ConfigError when one of them is not gated.
    """
    deltas = [concept.delta for concept in concepts]
    others = [name for name, delta in zip(names, deltas, strict=True) if not delta.gated]
    if others:
        raise ConfigError(
            f"{others[0]} changes keys and values for every word, another of the deltas at its own words alone.",
            hint="Sample with both (--delta twice), or train both with the same --method, and merge.",
        )
    clock = time.monotonic()
    pipeline = load_base_model(config.base, device=choose_device(config.device))
    _check_changes(pipeline, deltas, names, context)
    merged = _merged_delta(config, pipeline, concepts, names, {})
    merged = replace(merged, gated=tuple(gate for delta in deltas for gate in delta.gated))
    save_delta(merged, out / DELTA_NAME)
    details: dict[str, Any] = {
        **dict.fromkeys(("constraint_residual", "drift", "growth"), 0.0),
        **{"condition": None, "conflicts": [], "constraints": 0, "rank": 0, "captions": 0, "base": config.base},
        "tokens": _tokens_as_json(concepts, names),
        "prompts": list(merged.prompts),
        "seconds": round(time.monotonic() - clock, 3),
    }
    return Dataset("delta", out.path, Counts(len(deltas), len(deltas)), details)


def _captions(config: MergeConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> SampledCaptions:
    if config.index is not None:
        sample = sample_rows(captions_folder(Path(config.index)), config.captions_count, config.seed, context)
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
    first: dict[str, tuple[tuple[int, ...], str]] = {}
    for delta, name in zip(deltas, names, strict=True):
        shapes = {key: tuple(change.shape) for key, change in delta.changes.items()}
        shapes |= {tower: (rows.shape[1],) for token in delta.tokens for tower, rows in token.rows.items()}
        clash = [first[key][1] for key, shape in shapes.items() if key in first and first[key][0] != shape]
        if clash:
            raise ConfigError(
                f"{clash[0]} and {name} were made on base models of different families.",
                hint="Deltas of one base model can be merged; train the concepts on the same one.",
            )
        first |= {key: (shape, name) for key, shape in shapes.items()}


def _check_changes(
    pipeline: DiffusionPipeline, deltas: Sequence[Delta], names: Sequence[str], context: Context
) -> None:
    matrices = set(cross_attention_names(denoiser_of(pipeline)))
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
            refuse_earlier_edition(name, delta.base_hash)
            context.progress.note(f"{name} was made on other weights than this base model's; the merge may differ.")


def _merged_delta(
    config: MergeConfig,
    pipeline: DiffusionPipeline,
    concepts: Sequence[Renamed],
    names: Sequence[str],
    changes: Mapping[str, torch.Tensor | LowRank],
) -> Delta:
    family = family_of(pipeline)
    categories: dict[str, Any] = {}
    for concept in concepts:
        named = concept.delta.settings.get("concepts")
        categories |= named if isinstance(named, dict) else {}
    return Delta(
        method="merge",
        part=family.denoiser,
        base=config.base,
        base_hash=base_hash(pipeline),
        changes=dict(changes),
        tokens=tuple(token for concept in concepts for token in concept.delta.tokens),
        prompts=tuple(dict.fromkeys(prompt for concept in concepts for prompt in concept.delta.prompts)),
        settings={
            **({"family": family.name} if family.denoiser == "transformer" else {}),
            "concepts": categories,
            "merged": [
                {"delta": name, "method": concept.delta.method, "tokens": concept.former}
                for concept, name in zip(concepts, names, strict=True)
            ],
            "way": config.way,
            "ridge": config.ridge,
            "near_weight": config.near_weight,
            "soft": config.soft,
            "end_of_text": config.end_of_text,
            "apart": config.apart,
            "edge_weight": config.edge_weight,
            "captions": config.captions_count,
            "seed": config.seed,
        },
    )


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
            free = next(word for number in count(1) if (word := f"<new{number}>") not in taken)
            names[token.text] = free if same_word(token.text) in shared else token.text
            taken.add(same_word(names[token.text]))
        result.append(Renamed(_renamed(delta, names), {new: old for old, new in names.items()}))
    return result


def _check_distinct(tokens: Sequence[ModifierToken]) -> None:
    for first, second in combinations(tokens, 2):
        if same_word(first.text) == same_word(second.text) and first.has_rows_of(second):
            raise ConfigError(
                f"Two deltas bring the same token {second.text} with the same embedding.",
                hint="Give every concept's delta once, each trained on its own on the base model.",
            )


def _renamed(delta: Delta, names: dict[str, str]) -> Delta:
    change = substitution(names)
    return replace(
        delta,
        tokens=tuple(replace(token, text=names[token.text]) for token in delta.tokens),
        prompts=tuple(change(prompt) for prompt in delta.prompts),
        gated=tuple(gate.renamed(change) for gate in delta.gated),
    )
