"""The stages token-counts and tokens: counts of every vocabulary token, and rare ones picked from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder, write_json
from cdkit.tokens.config import CaptionSampleConfig, RareTokensConfig, TokenCountsConfig
from cdkit.tokens.count import TokenCounts, count_tokens, count_words, finished_counts, read_counts, write_counts
from cdkit.tokens.explain import add_neighbours, embedding_table
from cdkit.tokens.modifiers import PICKS_FORMAT, PICKS_NAME
from cdkit.tokens.rare import find_rare
from cdkit.tokens.sample import IMPORTED, SampledCaptions, captions_folder, import_pools, sample_rows
from cdkit.tokens.vocabulary import Tower, load_towers

# Of the rows asked for: from this share on, counts mean what they would over all of them.
NEARLY = 0.9


def count_caption_tokens(
    config: TokenCountsConfig, inputs: Mapping[str, Input], out: Folder, context: Context
) -> Dataset:
    """Count every token over a sample of caption rows into token_counts/ (token_counts_2/ for a second text tower)."""
    token_counts = _count(config, inputs, out, context)
    sampled, available = token_counts.sampled or 0, token_counts.available or 0
    left_out = {"not_sampled": available - sampled} if available > sampled else {}
    return Dataset(
        kind="token_counts",
        folder=out.path,
        counts=Counts(available, sampled, left_out),
        details={"tokenizer": config.tokenizer, **token_counts.as_json()},
    )


def pick_tokens(config: RareTokensConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Pick rare tokens into picks.json, with neighbours when a base model is given; short when no token qualifies.

    Counts made on the way stay beside it.
    """
    if config.counts is not None:
        counts = read_counts(Path(config.counts), load_towers(config.tokenizer))
    else:
        counts = _count(config, inputs, out, context)
    if counts.words is None:
        context.progress.note("These counts do not say which tokens stand as words: everyday words may be picked.")
    rare = find_rare(counts, config)
    if config.base is not None and rare.picks:
        table = embedding_table(config.base)
        rare = replace(rare, picks=add_neighbours(rare.picks, counts.towers[0].vocabulary, table))
    details = {"tokenizer": config.tokenizer, **rare.as_json()}
    write_json(out / PICKS_NAME, {"format": PICKS_FORMAT, **details})
    kept = len(rare.picks)
    return Dataset(
        kind="picks",
        folder=out.path,
        counts=Counts(kept + sum(rare.rejected.values()), kept, rare.rejected),
        details=details,
        shortfall=rare.shortfall(config),
    )


def _count(config: CaptionSampleConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> TokenCounts:
    """Draw the sample, count it for every tower and write token_counts/; what an earlier run finished is read back.

    Raises InputError for an unusable tokenizer, and for captions that are not there.
    """
    towers = load_towers(config.tokenizer)
    done = finished_counts(out.path, towers, context.fingerprint)
    if done is not None:
        return done
    if config.index is not None:
        folder = captions_folder(Path(config.index))
    else:
        folder = import_pools(inputs["captions"], config.pool, config.caption_column, out, context)
    sample = sample_rows(folder, config.sample, config.seed, context)
    if sample.sampled < NEARLY * config.sample:
        context.progress.note(f"There are only {sample.available:,} caption rows; all of them are counted.")
    counts: list[np.ndarray] = []
    for tower in towers:
        counts.append(_count_tower(tower, towers[: len(counts)], counts, sample, context))
    words = count_words(sample.captions, towers[0].vocabulary, sample.rows)
    result = TokenCounts(tuple(towers), tuple(counts), words, sample.sampled, sample.available)
    write_counts(out.path, result, context.fingerprint)
    out.remove([IMPORTED])
    return result


def _count_tower(
    tower: Tower, earlier: list[Tower], counts: list[np.ndarray], sample: SampledCaptions, context: Context
) -> np.ndarray:
    """The tower's counts; a tower that does what an earlier one does is not counted again."""
    for other, of_other in zip(earlier, counts, strict=True):
        if tower.same_as(other):
            return of_other
    label = f"counting tokens ({tower.name})"
    with context.progress.task(label, len(sample.captions), unit="captions") as task:
        return count_tokens(sample.captions, tower, sample.rows, task)
