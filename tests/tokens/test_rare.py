"""The rare-token rule against a slow reading of it, its order, its reasons, and its bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdkit.core.errors import InputError
from cdkit.tokens.config import RareRule
from cdkit.tokens.count import TokenCounts, count_tokens, count_words
from cdkit.tokens.rare import find_rare
from cdkit.tokens.vocabulary import Tower, Vocabulary


def counts_of(tower: Tower, given: dict[str, int], words: dict[str, int] | None = None) -> TokenCounts:
    """Counts in which only the given entries occur."""
    ids = tower.vocabulary.ids
    counts, standing = (np.zeros(len(tower.vocabulary), dtype=np.int64) for _ in range(2))
    for entry, number in given.items():
        counts[ids[entry]] = number
    for entry, number in (words or {}).items():
        standing[ids[entry]] = number
    return TokenCounts((tower,), (counts,), standing, 1000, 1000)


def qualifies(vocabulary: Vocabulary, index: int, count: int) -> bool:
    """The paper's rule, read slowly: every entry looked at."""
    surface = vocabulary.entries[index].removesuffix("</w>")
    if not (5 <= count <= 10 and surface.isascii() and surface.isalpha()):
        return False
    return not any(surface in other and surface != other for other in vocabulary.letters)


def test_the_rule_on_the_papers_own_and_on_sks(clip: Tower) -> None:
    given = {"ktn": 7, "pll": 7, "ucd</w>": 7, "sks</w>": 7, "cat</w>": 7, "miff": 4, "sohn</w>": 11, "1</w>": 7}
    found = find_rare(counts_of(clip, given), RareRule())
    assert [(pick.token, pick.token_id, pick.count) for pick in found.picks] == [
        ("pll", 47629, 7),
        ("ucd</w>", 43514, 7),
        ("ktn", 42170, 7),
    ]
    assert found.rejected["inside_another_token"] == 2
    assert found.rejected["not_alphabetic"] == 1
    assert found.rejected["above_max_count"] == 1
    assert len(found.picks) + sum(found.rejected.values()) == len(clip.vocabulary)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_equals_the_rule_read_slowly(clip: Tower, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vocabulary = clip.vocabulary
    counts = np.zeros(len(vocabulary), dtype=np.int64)
    counts[rng.choice(len(vocabulary), 60, replace=False)] = rng.integers(1, 15, 60)
    found = find_rare(TokenCounts((clip,), (counts,), None, None, None), RareRule(limit=100))
    slow = [index for index in np.flatnonzero(counts).tolist() if qualifies(vocabulary, index, int(counts[index]))]
    # CLIP's ids follow its merges, so the highest rank first is the highest id first.
    assert [pick.token_id for pick in found.picks] == sorted(slow, reverse=True)


def test_for_prompt_takes_whole_words_only(clip: Tower) -> None:
    counts = counts_of(clip, {"ktn": 6, "pll": 6, "ucd</w>": 6})
    found = find_rare(counts, RareRule(purpose="prompt"))
    assert [pick.token for pick in found.picks] == ["ucd</w>"]
    assert clip.encode(["a photo of ucd dog"])[0][3] == found.picks[0].token_id
    assert found.rejected["not_a_whole_word"] == 2


def test_everyday_words_of_the_captions_are_no_picks(clip: Tower) -> None:
    counts = counts_of(clip, {"puffy</w>": 8, "miff": 8}, words={"puffy</w>": 6})
    assert [pick.token for pick in find_rare(counts, RareRule()).picks] == ["miff"]
    assert find_rare(counts, RareRule()).rejected["a_word_of_these_captions"] == 1
    widened = find_rare(counts, RareRule(max_words=6))
    assert [pick.token for pick in widened.picks] == ["miff", "puffy</w>"]


def test_not_in_the_concepts_own_prompts(clip: Tower) -> None:
    counts = counts_of(clip, {"miff": 8, "sohn</w>": 8, "pll": 8})
    rule = RareRule(prompts=("a photo of a Mendelssohn", "A MIFFY toy"))
    assert [pick.token for pick in find_rare(counts, rule).picks] == ["pll"]
    assert find_rare(counts, rule).rejected["in_the_prompts"] == 2


def test_one_pick_per_surface_form_and_no_more_than_asked_for(clip: Tower) -> None:
    counts = counts_of(clip, {"pll": 6, "pll</w>": 6, "ktn": 6, "ucd": 6, "ucd</w>": 6})
    found = find_rare(counts, RareRule())
    assert [pick.token for pick in found.picks] == ["pll", "ucd", "ktn"]
    assert found.rejected["twin_of_a_pick"] == 2
    fewer = find_rare(counts, RareRule(limit=1))
    assert [pick.token for pick in fewer.picks] == ["pll"]
    assert fewer.rejected["beyond_the_limit"] == 3
    assert fewer.rejected["twin_of_a_pick"] == 1


def test_flags_open_the_other_bounds(clip: Tower) -> None:
    counts = counts_of(clip, {"sks</w>": 6, "cafÃ©</w>": 6})
    assert find_rare(counts, RareRule()).picks == ()
    assert [pick.token for pick in find_rare(counts, RareRule(inside_others=True)).picks] == ["sks</w>"]
    every = find_rare(counts, RareRule(inside_others=True, letters="any"))
    assert {pick.token for pick in every.picks} == {"sks</w>", "cafÃ©</w>"}


def test_no_pick_says_so_with_the_nearest(clip: Tower) -> None:
    counts = counts_of(clip, {"ktn": 14, "miff": 3, "pll": 900, "cat</w>": 4})
    rule = RareRule()
    found = find_rare(counts, rule)
    assert found.picks == ()
    assert [pick.token for pick in found.alternatives] == ["miff", "ktn", "pll"]
    assert "occurs 5 to 10 times over 1,000 caption rows" in found.shortfall(rule)
    assert "miff (3 times), ktn (14 times)" in found.shortfall(rule)
    assert found.as_json()["alternatives"][0] == {"token": "miff", "token_id": 49398, "count": 3, "merge_rank": 48886}
    nothing = find_rare(counts_of(clip, {}), rule)
    assert "No token comes near it" in nothing.shortfall(rule)


def test_a_pick_meets_the_rule_in_every_tower(clip: Tower) -> None:
    counts = counts_of(clip, {"ktn": 7, "pll": 7})
    other = counts.counts[0].copy()
    other[clip.vocabulary.ids["pll"]] = 11
    both = replace(counts, towers=(clip, clip), counts=(counts.counts[0], other))
    found = find_rare(both, RareRule())
    assert [pick.token for pick in found.picks] == ["ktn"]
    assert found.rejected["above_max_count"] == 1


def test_a_vocabulary_that_marks_no_words_is_refused(clip: Tower) -> None:
    foreign = replace(clip, vocabulary=Vocabulary(("a", "b"), spelling=None))
    with pytest.raises(InputError, match="does not mark"):
        find_rare(TokenCounts((foreign,), (np.zeros(2, np.int64),), None, None, None), RareRule())


def test_captions_to_picks(clip: Tower) -> None:
    """From captions alone: a word piece that is no word of theirs, though others occur as often."""
    captions = ["breezy jodhpurs"] * 3 + ["jodhpurs, jodhpurs"] * 2 + ["a dog"] * 40
    counts = count_tokens(captions, clip)
    words = count_words(captions, clip.vocabulary)
    found = find_rare(TokenCounts((clip,), (counts,), words, 45, 45), RareRule())
    assert [(pick.token, pick.count) for pick in found.picks] == [("jodh", 7)]
