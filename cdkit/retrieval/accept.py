"""Which images are accepted: the first N in candidate order that pass, whichever server answered first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cdkit.fetching.batches import WaveEnd
from cdkit.fetching.blocklist import Blocklist, blocked_url
from cdkit.fetching.job import FailedFetch, FetchedImage
from cdkit.fetching.urls import host_of, url_text
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.decisions import BY_HAND, Decisions

# Of one caption or host, URLs tried at once for each image that may still be accepted.
SPARE = 2
# Images looked at at once: enough to keep the workers busy, few enough not to look at many in vain.
SMALLEST_BATCH = 32
SPARE_AT_HAND = 1.25


@dataclass(frozen=True)
class Limits:
    """How many images are wanted, at most how many of them per caption, and per host (None: any number)."""

    wanted: int
    per_caption: int = 1
    per_host: int | None = None


class Admission(Protocol):
    """Decides image by image, in candidate order; it may compare with those it admitted before."""

    def admit(self, place: int, candidate: Candidate, image: FetchedImage) -> str | None:
        """None when the image is accepted, else the reason why it is not."""

    def withdrawn(self) -> Mapping[int, str]:
        """Places admitted earlier that the last decision showed to be wrong, with the reason; each is told once."""


class Judge(Protocol):
    """Judges fetched images; a new admission starts from nothing each time, so expensive facts belong in prepare."""

    def prepare(self, images: Sequence[tuple[Candidate, FetchedImage]]) -> None:
        """Look at newly fetched images, in any order."""

    def admission(self) -> Admission: ...


@dataclass
class Standing:
    """Where things stand. accepted, failed and undecided: places in the candidate order; turned_down: place → reason.

    undecided are those that could still change the result and are worth trying now, in order. complete: nothing can;
    then accepted, turned_down and failed depend on nothing but the candidates and what was behind them.
    """

    accepted: list[int] = field(default_factory=list)
    turned_down: dict[int, str] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    undecided: list[int] = field(default_factory=list)
    complete: bool = True


def stand(
    candidates: Sequence[Candidate],
    outcomes: Mapping[int, FetchedImage | FailedFetch],
    admission: Admission,
    limits: Limits,
) -> Standing:
    """Walk the candidates in order and accept until there are enough; `outcomes` holds what was fetched or given up.

    A candidate whose caption or host is full is passed over. What an undecided candidate would change is not guessed:
    it stays undecided, and the result is complete only when none is left before the last one needed.
    """
    standing = Standing()
    captions: Counter[int] = Counter()
    hosts: Counter[str] = Counter()
    tentative: Counter[int | str] = Counter()
    for place, candidate in enumerate(candidates):
        if len(standing.accepted) >= limits.wanted:
            break
        host = host_of(candidate.url or "") if limits.per_host is not None else ""
        room = limits.per_caption - captions[candidate.caption_id]
        if limits.per_host is not None:
            room = min(room, limits.per_host - hosts[host])
        if room <= 0:
            continue
        outcome = outcomes.get(place)
        if outcome is None:
            standing.complete = False
            if max(tentative[candidate.caption_id], tentative[host] if host else 0) < room * SPARE:
                standing.undecided.append(place)
                tentative.update([candidate.caption_id, *([host] if host else [])])
        elif isinstance(outcome, FailedFetch):
            standing.failed.append(place)
        else:
            reason = admission.admit(place, candidate, outcome)
            if reason is None:
                standing.accepted.append(place)
                captions[candidate.caption_id] += 1
                hosts[host] += 1
            else:
                standing.turned_down[place] = reason
            for earlier, why in admission.withdrawn().items():
                standing.accepted.remove(earlier)
                standing.turned_down[earlier] = why
                captions[candidates[earlier].caption_id] -= 1
                hosts[host_of(candidates[earlier].url or "") if limits.per_host is not None else ""] -= 1
    return standing


@dataclass(frozen=True)
class Downloaded:
    """How a download ended. accepted: candidates with their images, in candidate order, at most as many as wanted.

    turned_down: got, but not accepted, with the reason; failed: given up, with the kind; both up to the last one
    accepted, so that they are the same however the waves fell. tried and fetched count all URLs, with those that were
    tried in vain because enough were accepted before them; exhausted: there were not enough candidates.
    """

    accepted: list[tuple[Candidate, FetchedImage]]
    turned_down: list[tuple[Candidate, FetchedImage, str]]
    failed: list[tuple[Candidate, FailedFetch]]
    tried: int
    fetched: int
    exhausted: bool
    waves: list[WaveEnd] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        outcomes: Mapping[int, FetchedImage | FailedFetch],
        standing: Standing,
        limits: Limits,
        *,
        tried: int,
        fetched: int,
        waves: Sequence[WaveEnd] = (),
    ) -> Downloaded:
        """What a complete standing amounts to."""
        images = {place: image for place, image in outcomes.items() if isinstance(image, FetchedImage)}
        failures = {place: failure for place, failure in outcomes.items() if isinstance(failure, FailedFetch)}
        return cls(
            accepted=[(candidates[place], images[place]) for place in standing.accepted],
            turned_down=[
                (candidates[place], images[place], reason) for place, reason in sorted(standing.turned_down.items())
            ],
            failed=[(candidates[place], failures[place]) for place in standing.failed],
            tried=tried,
            fetched=fetched,
            exhausted=len(standing.accepted) < limits.wanted,
            waves=list(waves),
        )


def select(
    candidates: Sequence[Candidate],
    images: Mapping[int, FetchedImage | FailedFetch],
    *,
    limits: Limits,
    judge: Judge,
    blocklist: Blocklist | None = None,
    decisions: Decisions | None = None,
) -> Downloaded:
    """Accept images in candidate order until there are enough; a candidate without an image fails as `missing`.

    decisions: whose rejected URLs are not looked at.
    """
    listed = (blocklist or Blocklist()).urls
    outcomes: dict[int, FetchedImage | FailedFetch] = {}
    for place, candidate in enumerate(candidates):
        url = url_text(candidate.url or "") if listed else None
        if url in listed:
            outcomes[place] = blocked_url(str(url))
        elif decisions is not None and decisions.refuse(candidate.url):
            outcomes[place] = FailedFetch(candidate.url, BY_HAND)
        elif isinstance(image := images.get(place), FailedFetch) or image is None:
            outcomes[place] = image or FailedFetch(candidate.url, "missing", detail="not among the images given")
    looked_at = 0
    while not (standing := stand(candidates, outcomes, judge.admission(), limits)).complete:
        batch = max(SMALLEST_BATCH, round(SPARE_AT_HAND * (limits.wanted - len(standing.accepted))))
        chosen = standing.undecided[:batch]
        fresh = [(candidates[place], image) for place in chosen if isinstance(image := images[place], FetchedImage)]
        judge.prepare(fresh)
        looked_at += len(fresh)
        outcomes |= {place: images[place] for place in chosen}
    return Downloaded.of(candidates, outcomes, standing, limits, tried=looked_at, fetched=looked_at)
