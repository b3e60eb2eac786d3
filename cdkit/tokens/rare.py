"""The paper's rule for modifier tokens (Custom Diffusion, appendix E): rare, alphabetic, inside no other token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from cdkit.core.text import clean_caption
from cdkit.tokens.config import RareRule
from cdkit.tokens.count import TokenCounts
from cdkit.tokens.modifiers import Pick

ALTERNATIVES = 5


@dataclass(frozen=True)
class RareTokens:
    """The picks, best first; why every other entry was passed over; the nearest misses when none qualified."""

    picks: tuple[Pick, ...]
    rejected: dict[str, int]
    alternatives: tuple[Pick, ...] = ()
    rows: int | None = None

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"picks": [pick.as_json() for pick in self.picks], "rejected": self.rejected}
        if self.alternatives:
            shown["alternatives"] = [pick.as_json() for pick in self.alternatives]
        return {**shown, "rows": self.rows}

    def shortfall(self, rule: RareRule) -> str:
        """Why there is no pick, in words; empty when there is one."""
        if self.picks:
            return ""
        over = f"over {self.rows:,} caption rows" if self.rows is not None else "in these counts"
        near = ", ".join(f"{pick.token} ({pick.count} times)" for pick in self.alternatives)
        return f"No token that occurs {rule.min_count} to {rule.max_count} times {over} meets the rule. " + (
            f"Nearest: {near}; widen --min-count and --max-count to take them." if near else "No token comes near it."
        )


def find_rare(counts: TokenCounts, rule: RareRule) -> RareTokens:
    """Apply the rule: the rarest in the tokenizer's own training first (highest merge rank), one per surface form.

    A pick meets the rule in every text tower; id and count shown are the first tower's. Every vocabulary entry is
    either a pick or counted under exactly one reason. Deterministic. Raises InputError for a kind of vocabulary that
    the rule is not known for.
    """
    for tower in counts.towers:
        tower.vocabulary.require_ranks(tower.name)
    search = _Search(counts, rule)
    vocabulary = counts.towers[0].vocabulary
    picks: dict[str, Pick] = {}
    rejected: dict[str, int] = {}
    for index in search.by_rank(range(len(vocabulary))):
        reason = search.count_problem(index) or search.word_problem(index)
        letters = vocabulary.letters[index]
        if not reason and letters in picks:
            reason = "twin_of_a_pick"
        if not reason and len(picks) == rule.limit:
            reason = "beyond_the_limit"
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
        else:
            picks[letters] = search.pick(index)
    alternatives = () if picks else tuple(islice(search.nearest(), ALTERNATIVES))
    return RareTokens(tuple(picks.values()), dict(sorted(rejected.items())), alternatives, counts.sampled)


class _Search:
    """One search: the rule's questions about a vocabulary id of the first tower, the cheap ones first."""

    def __init__(self, counts: TokenCounts, rule: RareRule) -> None:
        self.rule = rule
        self.towers = counts.towers
        self.vocabulary = counts.towers[0].vocabulary
        self.counts: Sequence[np.ndarray] = counts.counts
        self.words = counts.words
        self.prompts = [prompt.casefold() for prompt in rule.prompts]

    @cached_property
    def prompt_letters(self) -> set[str]:
        """Surface forms of every token the concept's prompts are made of."""
        cleaned = [clean_caption(prompt) for prompt in self.rule.prompts]
        encoded = self.towers[0].encode(cleaned) if cleaned else []
        return {self.vocabulary.letters[index] for ids in encoded for index in ids}

    def by_rank(self, indices: Sequence[int]) -> Iterator[int]:
        """Ids, highest merge rank first; single letters (which no merge made) come last, in their own order."""
        ranks, entries = self.vocabulary.merge_ranks, self.vocabulary.entries
        yield from sorted(indices, key=lambda index: (-ranks.get(entries[index], -1), index))

    def pick(self, index: int) -> Pick:
        entry = self.vocabulary.entries[index]
        return Pick(entry, index, int(self.counts[0][index]), self.vocabulary.merge_ranks.get(entry))

    def count_problem(self, index: int) -> str:
        for tower, counts in zip(self.towers, self.counts, strict=True):
            here = tower.vocabulary.counterpart(self.vocabulary, index)
            if here is None or index in self.vocabulary.specials:
                return "special_or_not_in_every_tower"
            if counts[here] < self.rule.min_count:
                return "below_min_count"
            if counts[here] > self.rule.max_count:
                return "above_max_count"
        return ""

    def word_problem(self, index: int) -> str:
        """Why the entry's form rules it out, whatever its count; empty when nothing does."""
        letters = self.vocabulary.letters[index]
        if not self._alphabetic(index):
            return "not_alphabetic"
        if self.words is not None and self.words[index] > self.rule.max_words:
            return "a_word_of_these_captions"
        if self.rule.purpose == "prompt" and not self._is_prompt_word(index):
            return "not_a_whole_word"
        read = self.vocabulary.text(index) or letters
        spelt = [letters, *(tower.vocabulary.spelt(read) for tower in self.towers[1:])]
        inside = (
            next(tower.vocabulary.containing(form), None) is not None
            for tower, form in zip(self.towers, spelt, strict=True)
        )
        if not self.rule.inside_others and any(inside):
            return "inside_another_token"
        text = (self.vocabulary.text(index) or "").casefold()
        if letters in self.prompt_letters or any(text in prompt for prompt in self.prompts):
            return "in_the_prompts"
        return ""

    def nearest(self) -> Iterator[Pick]:
        """Tokens of the right form whose count is nearest the bounds, best first, one per surface form."""
        low, high, counts = self.rule.min_count, self.rule.max_count, self.counts[0]

        def distance(index: int) -> int:
            return int(max(low - counts[index], counts[index] - high, 0))

        seen = set()
        for index in sorted(self.by_rank(range(len(self.vocabulary))), key=distance):
            usable = self.count_problem(index) != "special_or_not_in_every_tower" and counts[index] > 0
            letters = self.vocabulary.letters[index]
            if usable and letters not in seen and not self.word_problem(index):
                seen.add(letters)
                yield self.pick(index)

    def _alphabetic(self, index: int) -> bool:
        letters = self.vocabulary.letters[index]
        if letters.isascii() or self.rule.letters == "ascii":
            return letters.isascii() and letters.isalpha()
        return (self.vocabulary.text(index) or "").isalpha()

    def _is_prompt_word(self, index: int) -> bool:
        """Whether typing the surface form into a prompt gives this one entry, in every tower."""
        text = self.vocabulary.text(index)
        if text is None or not self.vocabulary.is_word(index):
            return False
        return all(
            tower.encode_word(text) == [tower.vocabulary.counterpart(self.vocabulary, index)] for tower in self.towers
        )
