"""The stages token-counts and tokens: counts of every vocabulary token, and rare ones picked from them."""

from __future__ import annotations

from collections.abc import Mapping

from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder, write_json
from cdkit.tokens.config import RareTokensConfig, TokenCountsConfig
from cdkit.tokens.count import counted
from cdkit.tokens.modifiers import PICKS_FORMAT, PICKS_NAME
from cdkit.tokens.rare import rare_tokens


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
