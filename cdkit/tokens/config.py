"""Settings of the stages token-counts and tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cdkit.core.config import ParallelConfig, StageConfig, setting

CLIP = "clip"


class CaptionSampleConfig(ParallelConfig):
    """Which captions are counted, with which tokenizer."""

    captions: list[str] = setting([], "Pool files, folders, globs or URLs to count.", input="files")
    pool: str | None = setting(None, "The pools' layout [default: detected].")
    caption_column: str | None = setting(None, "The pools' caption column [default: by its name].")
    index: str | None = setting(None, "An index folder whose captions to count.", input="index")
    tokenizer: str = setting(
        CLIP,
        "clip (ships with cdkit), or a base model's own: its folder or hub id, or transformers:FOLDER.",
        input="model",
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


class RareRule(StageConfig):
    """Every bound of the rule.

    Of 200,000 captions, 5 to 10 is also what many an everyday word reaches, so words of their own do not count.
    """

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

    @model_validator(mode="after")
    def _bounds(self) -> RareRule:
        if self.min_count > self.max_count:
            raise ValueError(f"min_count {self.min_count} is above max_count {self.max_count}")
        return self


class RareTokensConfig(RareRule, CaptionSampleConfig):
    """Settings of stage `tokens`."""

    counts: str | None = setting(None, "Counts that cdkit tokens count has made, instead of captions.", input="folder")
    base: str | None = setting(
        None, "A base model: shows each pick's nearest tokens by its embeddings.", input="model"
    )

    @model_validator(mode="after")
    def _one_source(self) -> RareTokensConfig:
        if [bool(self.captions), bool(self.index), bool(self.counts)].count(True) != 1:
            raise ValueError("give one of captions (pool files), index (an index folder) or counts (a counts folder)")
        return self
