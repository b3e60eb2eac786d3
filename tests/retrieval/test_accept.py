"""The walk that accepts the first N in candidate order, whoever answers first."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cdkit.fetching.job import FailedFetch, FetchedImage
from cdkit.pictures.picture import FileContent
from cdkit.retrieval.accept import Limits, Standing, stand
from cdkit.retrieval.candidates import Candidate
from tests.support.accept_all import AcceptAll

Outcomes = dict[int, FetchedImage | FailedFetch]


def candidate(caption_id: int, host: str) -> Candidate:
    return Candidate("q", caption_id, f"c{caption_id}", 1.0, f"http://{host}.test/{caption_id}")


FETCHED = FetchedImage("u", FileContent("nowhere"))  # type: ignore[arg-type]
FAILED = FailedFetch("u", "timeout")


def settled(candidates: list[Candidate], works: list[bool], limits: Limits) -> list[int]:
    """What a download with all the time in the world would accept."""
    outcomes: Outcomes = {place: FETCHED if works[place] else FAILED for place in range(len(candidates))}
    standing = stand(candidates, outcomes, AcceptAll(), limits)
    assert standing.complete
    return standing.accepted


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from("abc"), st.booleans()), max_size=25),
    st.integers(1, 8),
    st.integers(1, 2),
    st.one_of(st.none(), st.integers(1, 3)),
    st.randoms(use_true_random=False),
)
def test_what_is_accepted_does_not_depend_on_who_answers_first(
    rows: list[tuple[int, str, bool]], wanted: int, per_caption: int, per_host: int | None, draw: random.Random
) -> None:
    candidates = [candidate(caption, host) for caption, host, _ in rows]
    works = [alive for _, _, alive in rows]
    limits = Limits(wanted, per_caption, per_host)
    outcomes: Outcomes = {}
    standing = Standing(complete=False)
    for _ in range(200):
        standing = stand(candidates, outcomes, AcceptAll(), limits)
        if standing.complete:
            break
        # Any of the undecided may be the next to be known, and some others with it.
        for place in draw.sample(standing.undecided, draw.randint(1, len(standing.undecided))):
            outcomes[place] = FETCHED if works[place] else FAILED
    assert standing.complete
    assert standing.accepted == settled(candidates, works, limits)
    assert len(standing.accepted) <= wanted
    assert max(Counter(candidates[place].caption_id for place in standing.accepted).values(), default=0) <= per_caption
    if per_host is not None:
        hosts = Counter(candidates[place].url.split("/")[2] for place in standing.accepted)  # type: ignore[union-attr]
        assert max(hosts.values(), default=0) <= per_host


class NoOddCaptions(AcceptAll):
    """Turns down odd captions."""

    def admit(self, place: int, candidate: Candidate, image: FetchedImage) -> str | None:
        return "odd" if candidate.caption_id % 2 else None


def test_what_is_turned_down_is_made_up_for() -> None:
    candidates = [candidate(number, "a") for number in range(10)]
    standing = stand(candidates, dict.fromkeys(range(10), FETCHED), NoOddCaptions(), Limits(3))
    assert standing.accepted == [0, 2, 4]
    assert standing.turned_down == {1: "odd", 3: "odd"}
    waiting = stand(candidates, {place: FETCHED for place in range(10) if place != 1}, NoOddCaptions(), Limits(3))
    assert waiting.accepted == [0, 2, 4]
    assert waiting.undecided == [1]
    assert not waiting.complete
