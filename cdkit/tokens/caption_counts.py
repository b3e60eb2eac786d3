"""Stage `token-counts`: counts of every vocabulary token over a seeded sample of caption rows, kept as Parquet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import model_validator

from cdkit.config import ParallelConfig, setting
from cdkit.datasets import Dataset
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context
from cdkit.storage import Folder
from cdkit.tokens.count import count_tokens, count_words
from cdkit.tokens.counts_table import TokenCounts, finished_counts, write_counts
from cdkit.tokens.sample import IMPORTED, SampledCaptions, captions_folder, import_pools, sample_rows
from cdkit.tokens.towers import load_towers
from cdkit.tokens.vocabulary import CLIP, Tower

if TYPE_CHECKING:
    import numpy as np


class CaptionSampleConfig(ParallelConfig):
    """Which captions are counted, with which tokenizer."""

    captions: list[str] = setting([], "Pool files, folders, globs or URLs to count.", input="files")
    pool: str | None = setting(None, "The pools' layout [default: detected].")
    caption_column: str | None = setting(None, "The pools' caption column [default: by its name].")
    index: str | None = setting(None, "An index folder whose captions to count.", input="folder")
    tokenizer: str = setting(
        CLIP, "clip (ships with cdkit), or a base model's own: its folder or hub id.", input="model"
    )
    sample: int = setting(200_000, "Caption rows to draw; all of them when there are fewer.", ge=1)
    seed: int = setting(0, "Which sample is drawn.")


class TokenCountsConfig(CaptionSampleConfig):
    """Settings of stage `token-counts`."""

    @model_validator(mode="after")
    def _one_source(self) -> TokenCountsConfig:
        if bool(self.captions) == bool(self.index):
            raise ValueError("give either captions (pool files) or index (an index folder)")
        return self


def count_caption_tokens(
    config: TokenCountsConfig, inputs: Mapping[str, Input], out: Folder, context: Context
) -> Dataset:
    """Count every token over a sample of caption rows into token_counts/ (token_counts_2/ for a second text tower)."""
    found = counted(config, inputs, out, context)
    sampled, available = found.sampled or 0, found.available or 0
    left_out = {"not_sampled": available - sampled} if available > sampled else {}
    return Dataset(
        kind="token_counts",
        folder=out.path,
        counts=Counts(available, sampled, left_out),
        details={"tokenizer": config.tokenizer, **found.as_json()},
    )


def counted(config: CaptionSampleConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> TokenCounts:
    """Draw the sample, count it for every tower and write token_counts/; what an earlier run finished is read back.

    Raises InputError for an unusable tokenizer, and for captions that are not there.
    """
    towers = load_towers(config.tokenizer)
    done = finished_counts(out.path, towers, context.fingerprint)
    if done is not None:
        return done
    sample = _sample(config, inputs, out, context)
    if sample.sampled < config.sample:
        context.progress.note(f"There are only {sample.available:,} caption rows; all of them are counted.")
    counts: list[np.ndarray] = []
    for tower in towers:
        counts.append(_count_tower(tower, towers[: len(counts)], counts, sample, context))
    words = count_words(sample.captions, towers[0].vocabulary, sample.rows)
    found = TokenCounts(tuple(towers), tuple(counts), words, sample.sampled, sample.available)
    write_counts(out.path, found, context.fingerprint)
    out.remove([IMPORTED])
    return found


def _sample(
    config: CaptionSampleConfig, inputs: Mapping[str, Input], out: Folder, context: Context
) -> SampledCaptions:
    if config.index is not None:
        folder = captions_folder(Path(config.index))
    else:
        folder = import_pools(inputs["captions"], config.pool, config.caption_column, out, context)
    return sample_rows(folder, config.sample, config.seed, context)


def _count_tower(
    tower: Tower, earlier: list[Tower], counts: list[np.ndarray], sample: SampledCaptions, context: Context
) -> np.ndarray:
    """The tower's counts; a tower that does what an earlier one does is not counted again."""
    for other, known in zip(earlier, counts, strict=True):
        if tower.same_as(other):
            return known
    label = f"counting tokens ({tower.name})"
    with context.progress.task(label, len(sample.captions), unit="captions") as task:
        return count_tokens(sample.captions, tower, sample.rows, task)
