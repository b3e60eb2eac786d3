"""Candidates: the order that decides, the filters, and diverse selection."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.shards import schema
from cdkit.index.caption_index import CaptionIndex, open_index
from cdkit.index.search import Match
from cdkit.retrieval.candidates import (
    Candidate,
    CandidateSet,
    CandidateSettings,
    best_matches,
    farthest_first,
    find_candidates,
    join_rows,
    ranked,
    read_candidates,
    rejection,
    require_urls,
    write_candidates,
)
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_index import grammar_captions, make_index


def match(caption_id: int, similarity: float, *rows: dict[str, Any]) -> Match:
    return Match(caption_id, f"caption {caption_id}", similarity, list(rows))


def row(url: str | None, **values: Any) -> dict[str, Any]:
    return {"url": url, "width": None, "height": None, "md5": None, "source": "pool.parquet"} | values


def joined(*pairs: tuple[str, Match], **settings: Any) -> CandidateSet:
    return join_rows(ranked(best_matches(pairs)), CandidateSettings(**settings))


def test_a_caption_counts_for_the_prompt_it_is_closest_to() -> None:
    found = joined(
        ("a dog", match(7, 0.90, row("http://a/7"))),
        ("a dog", match(8, 0.95, row("http://a/8"))),
        ("a puppy", match(7, 0.93, row("http://a/7"))),
        ("a puppy", match(8, 0.95 + 1e-9, row("http://a/8"))),
    )
    assert [(candidate.caption_id, candidate.query) for candidate in found.candidates] == [
        (8, "a dog"),
        (7, "a puppy"),
    ]
    assert (found.captions, found.rows) == (2, 2)


def test_equal_similarities_are_ordered_by_caption() -> None:
    found = joined(*[("q", match(number, 0.9 + number * 1e-9, row(f"http://a/{number}"))) for number in (3, 1, 2)])
    assert [candidate.caption_id for candidate in found.candidates] == [1, 2, 3]


def test_spare_images_come_after_every_caption_had_its_turn() -> None:
    many = [row(f"http://a/{number}", pool_similarity=number / 10) for number in range(9)]
    found = joined(("q", match(1, 0.9, *many)), ("q", match(2, 0.8, row("http://b/1"), row("http://b/2"))))
    urls = [candidate.url for candidate in found.candidates]
    assert urls == ["http://a/8", "http://b/1", "http://a/7", "http://b/2", "http://a/6", "http://a/5", "http://a/4"]
    assert found.rejected == {"enough_of_caption": 4}
    both = joined(("q", match(1, 0.9, *many)), ("q", match(2, 0.8, row("http://b/1"))), per_caption=2)
    assert [candidate.url for candidate in both.candidates][:3] == ["http://a/8", "http://a/7", "http://b/1"]


def test_a_url_appears_once_with_its_best_caption() -> None:
    shared = row("http://a/same")
    found = joined(("q", match(1, 0.8, shared)), ("q", match(2, 0.9, shared, row("http://a/2"))))
    assert [(candidate.caption_id, candidate.url) for candidate in found.candidates] == [
        (2, "http://a/2"),
        (2, "http://a/same"),
    ]
    assert found.rejected == {"same_url": 1}


@given(st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_the_order_found(draw: random.Random) -> None:
    sizes = [(100, 50), (None, None), (80, 80)]
    pairs = [
        (
            "q",
            match(
                number,
                round(0.9 - number % 3 / 10, 2),
                *[row(f"http://a/{number}/{size}", width=size[0], height=size[1]) for size in sizes],
            ),
        )
        for number in range(6)
    ]
    expected = joined(*pairs)
    for _, found in pairs:
        draw.shuffle(found.rows)
    draw.shuffle(pairs)
    assert joined(*pairs) == expected


@pytest.mark.parametrize(
    ("settings", "values", "reason"),
    [
        ({"min_side": 64}, {"width": 63, "height": 500}, "too_small"),
        ({"min_side": 64}, {"width": 63}, "too_small"),
        ({"min_side": 64}, {"width": 64, "height": 64}, None),
        ({"min_side": 64}, {}, None),
        ({"max_aspect_ratio": 2}, {"width": 201, "height": 100}, "aspect_ratio"),
        ({"max_aspect_ratio": 2}, {"width": 0, "height": 100}, None),
        ({"nsfw_limit": "unlikely"}, {"nsfw": "UNSURE"}, "nsfw"),
        ({"nsfw_limit": "unsure"}, {"nsfw": "UNSURE"}, None),
        ({"nsfw_limit": "unlikely"}, {"nsfw": None}, None),
        ({"max_punsafe": 0.4}, {"punsafe": 0.5}, "punsafe"),
        ({"max_pwatermark": 0.8}, {"pwatermark": 0.9}, "watermark"),
        ({"max_pwatermark": 0.8}, {"pwatermark": None}, None),
        ({"min_pool_similarity": 0.3}, {"pool_similarity": 0.28}, "pool_similarity"),
        ({"min_pool_similarity": 0.3}, {"pool_similarity": 0.32}, None),
    ],
)
def test_filters_reject_what_is_known_to_be_unfit(
    settings: dict[str, Any], values: dict[str, Any], reason: str | None
) -> None:
    assert rejection(values, CandidateSettings(**settings)) == reason
    found = joined(("q", match(1, 0.9, row("http://a/1", **values))), **settings)
    assert found.rejected == ({reason: 1} if reason else {})
    assert found.rows == len(found.candidates) + sum(found.rejected.values())


def test_candidates_are_written_and_read_back(tmp_path: Path) -> None:
    found = joined(
        ("q", match(2**62 + 1, 0.912345, row("http://a/1", width=3, height=4, md5="f" * 32))),
        ("q", match(1, 0.85, row(None), row("http://a/2"), row("http://a/2"))),
    )
    write_candidates(tmp_path / "candidates", found, "this")
    assert read_candidates(tmp_path / "candidates", "this") == found
    assert read_candidates(tmp_path / "candidates", "that") is None
    assert schema("candidates").names == list(Candidate.__dataclass_fields__)


def test_a_pool_without_urls_is_said_before_anything_is_tried() -> None:
    with pytest.raises(InputError, match="no URLs"):
        require_urls(joined(("q", match(1, 0.9, row(None)))))
    require_urls(joined())
    require_urls(joined(("q", match(1, 0.9, row("http://a/1"), row(None)))))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CaptionIndex:
    encoder = HashingEncoder(64, threshold=0.6)
    folder = make_index(tmp_path_factory.mktemp("index"), grammar_captions(600), encoder)
    return open_index(folder, encoder)


PROMPTS = ["a small red dog near the grass at night", "a large blue cat near the beach at dawn"]


def test_an_index_gives_every_caption_above_the_threshold_with_its_rows(index: CaptionIndex) -> None:
    found = find_candidates(index, PROMPTS, 5, CandidateSettings(min_similarity=0.7))
    captions = grammar_captions(600)
    similarities = index.encoder.encode(captions) @ index.encoder.encode(PROMPTS).T
    expected = {caption for caption, row in zip(captions, similarities, strict=True) if row.max() >= 0.7}
    assert len(expected) > 10
    assert {candidate.caption for candidate in found.candidates} == expected
    assert (found.captions, found.rows, len(found.candidates)) == (len(expected), 2 * len(expected), 2 * len(expected))
    first = found.candidates[: len(expected)]
    assert [candidate.similarity for candidate in first] == sorted((c.similarity for c in first), reverse=True)
    for candidate in found.candidates:
        row = similarities[captions.index(candidate.caption)]
        assert candidate.similarity == pytest.approx(row.max(), abs=2e-6)
        assert candidate.query == PROMPTS[int(row.argmax())]
        assert candidate.url is not None
        assert str(candidate.caption_id) in candidate.url


def test_spread_takes_the_same_captions_in_another_order(index: CaptionIndex) -> None:
    top = find_candidates(index, PROMPTS, 5, CandidateSettings(min_similarity=0.7))
    spread = find_candidates(index, PROMPTS, 5, CandidateSettings(min_similarity=0.7, select="spread", seed=3))
    assert {candidate.url for candidate in top.candidates} == {candidate.url for candidate in spread.candidates}
    assert top.candidates != spread.candidates
    assert spread == find_candidates(index, PROMPTS, 5, CandidateSettings(min_similarity=0.7, select="spread", seed=3))


def test_what_is_left_out_is_said(index: CaptionIndex) -> None:
    few = find_candidates(index, PROMPTS[:1], 5, CandidateSettings(min_similarity=0.5, max_captions=3))
    assert few.captions == 3
    assert "there are more" in few.notes[0]
    none = find_candidates(index, ["zebra"], 5, CandidateSettings(min_similarity=0.99))
    assert (none.candidates, none.captions) == ([], 0)
    with pytest.raises(ConfigError):
        find_candidates(index, PROMPTS, 0)
    with pytest.raises(ConfigError):
        find_candidates(index, [], 1)


def test_spread_is_seeded_and_more_diverse_than_the_top() -> None:
    random_numbers = np.random.default_rng(0)
    # Nineteen of twenty captions say nearly the same.
    centres = random_numbers.standard_normal((20, 16))
    crowd = centres[0] + 0.05 * random_numbers.standard_normal((380, 16))
    vectors = np.concatenate([crowd, centres[1:]]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = farthest_first(vectors, len(vectors), seed=1)
    assert sorted(order) == list(range(len(vectors)))
    assert order == farthest_first(vectors, len(vectors), seed=1)
    assert order != farthest_first(vectors, len(vectors), seed=2)
    assert set(range(380, 399)) <= set(order[:20])
    assert farthest_first(vectors[:0], 5, seed=0) == []
    same = np.repeat(vectors[:1], 5, axis=0)
    assert sorted(farthest_first(same, 5, seed=0)) == [0, 1, 2, 3, 4]
