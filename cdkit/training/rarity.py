"""Is a DreamBooth word rare? By its count in captions where it was counted, else by its place in the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdkit.tokens.counts_table import COUNTS_FOLDER, TokenCounts, read_counts
from cdkit.tokens.explain import Explanation, explain_word
from cdkit.tokens.rare import RareRule
from cdkit.tokens.vocabulary import Tower, tower_of

# Merges are in the order of frequency: those of the last quarter make the vocabulary's rare tokens.
COMMON_MERGES = 0.75
# The rule's bounds are for so many caption rows (Kumari et al. 2023, appendix E).
RULE_ROWS = 200_000


def check_rarity(word: str, tokenizer: Any, picks: str | None, note: Callable[[str], None]) -> None:
    """Note when a word that stays as it is (DreamBooth's) is not one rare token of the first text encoder.

    picks: the folder of a `tokens` stage; the counts it keeps are used.
    """
    tower = tower_of("tokenizer", tokenizer)
    counts = read_counts(Path(picks), [tower]) if picks and (Path(picks) / COUNTS_FOLDER).is_dir() else None
    found = explain_word(word, tower, counts)
    reason = _not_rare(found, tower, counts)
    if reason:
        note(
            f"{word!r} is not rare: {reason}. What it means to the model stands in the way of what it is to learn. "
            "cdkit tokens rare --for prompt picks a rare word; cdkit tokens explain looks at one."
        )


def _not_rare(found: Explanation, tower: Tower, counts: TokenCounts | None) -> str:
    """Why the word is not rare, "" when it is."""
    if len(found.ids) != 1:
        shown = " + ".join(token.removesuffix("</w>") for token in found.tokens)
        return f"it is {len(found.ids)} tokens in a prompt ({shown}), each of which other words have too"
    index, entry = found.ids[0], found.tokens[0]
    if counts is not None:
        number = int(counts.counts[0][index])
        rows = counts.sampled or RULE_ROWS
        most = RareRule().max_count * max(rows, RULE_ROWS) / RULE_ROWS
        return f"it occurs {number:,} times in {rows:,} caption rows" if number > most else ""
    merges = len(tower.vocabulary.merges)
    rank = tower.vocabulary.merge_ranks.get(entry)
    if rank is None or rank < COMMON_MERGES * merges:
        place = f"its token is number {rank + 1:,} of {merges:,} by frequency" if rank is not None else "a letter"
        return f"{place} in the tokenizer's vocabulary (give --tokens for a count)"
    return ""
