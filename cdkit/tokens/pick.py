"""Stage `tokens`: picks rare tokens for `train` to start modifier tokens from, from captions or from kept counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from cdkit.config import setting
from cdkit.datasets import Dataset
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.protocols import Context
from cdkit.storage import Folder, write_json
from cdkit.tokens.caption_counts import CaptionSampleConfig, counted
from cdkit.tokens.counts_table import TokenCounts, read_counts
from cdkit.tokens.modifiers import PICKS_FORMAT, PICKS_NAME
from cdkit.tokens.neighbours import add_neighbours, embedding_table
from cdkit.tokens.rare import RareRule, RareTokens, find_rare
from cdkit.tokens.towers import load_towers


class RareTokensConfig(CaptionSampleConfig):
    """Settings of stage `tokens`."""

    counts: str | None = setting(None, "Counts that cdkit tokens count has made, instead of captions.", input="folder")
    min_count: int = setting(5, "Fewest times a token may occur.", ge=0)
    max_count: int = setting(10, "Most times a token may occur.", ge=0)
    max_words: int = setting(0, "Most times it may stand in the captions as a word of its own.", ge=0)
    limit: int = setting(20, "Picks to list.", ge=1)
    purpose: Literal["initializer", "prompt"] = setting(
        "initializer",
        "initializer: any vocabulary entry, word pieces too; prompt: a whole word that can be typed.",
        flag="--for",
    )
    prompts: list[str] = setting([], "The concept's own prompts: no token of them is picked.", flag="--prompt")
    letters: Literal["ascii", "any"] = setting("ascii", "Which letters count as alphabetic: a to z, or any script's.")
    inside_others: bool = setting(False, "Also take tokens that are part of another token.")
    base: str | None = setting(
        None, "A base model: shows each pick's nearest tokens by its embeddings.", input="model"
    )

    @model_validator(mode="after")
    def _one_source(self) -> RareTokensConfig:
        if [bool(self.captions), bool(self.index), bool(self.counts)].count(True) != 1:
            raise ValueError("give one of captions (pool files), index (an index folder) or counts (a counts folder)")
        if self.min_count > self.max_count:
            raise ValueError(f"min_count {self.min_count} is above max_count {self.max_count}")
        return self

    def rule(self) -> RareRule:
        """The rule these settings describe."""
        return RareRule(
            min_count=self.min_count,
            max_count=self.max_count,
            max_words=self.max_words,
            limit=self.limit,
            purpose=self.purpose,
            letters=self.letters,
            inside_others=self.inside_others,
            prompts=tuple(self.prompts),
        )


def pick_tokens(config: RareTokensConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Pick rare tokens into picks.json; counts made on the way stay beside it. Short when no token qualifies."""
    found = rare_tokens(config, inputs, out, context)
    write_json(out / PICKS_NAME, {"format": PICKS_FORMAT, "tokenizer": config.tokenizer, **found.as_json()})
    kept = len(found.picks)
    return Dataset(
        kind="picks",
        folder=out.path,
        counts=Counts(kept + sum(found.rejected.values()), kept, found.rejected),
        details={"tokenizer": config.tokenizer, **found.as_json()},
        shortfall=found.shortfall(config.rule()),
    )


def rare_tokens(
    config: RareTokensConfig, inputs: Mapping[str, Input], scratch: Folder, context: Context
) -> RareTokens:
    """The picks, with neighbours when a base model is given; counts made on the way are kept in `scratch`."""
    counts = _counts(config, inputs, scratch, context)
    if counts.words is None:
        context.progress.note("These counts do not say which tokens stand as words: everyday words may be picked.")
    found = find_rare(counts, config.rule())
    if config.base is None or not found.picks:
        return found
    table = embedding_table(config.base)
    return replace(found, picks=add_neighbours(found.picks, counts.towers[0].vocabulary, table))


def _counts(config: RareTokensConfig, inputs: Mapping[str, Input], scratch: Folder, context: Context) -> TokenCounts:
    if config.counts is not None:
        return read_counts(Path(config.counts), load_towers(config.tokenizer))
    return counted(config, inputs, scratch, context)
