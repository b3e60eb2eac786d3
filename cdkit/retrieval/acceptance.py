"""Which images are accepted: the first N in candidate order that pass, whichever server answered first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import FailedFetch, FetchedImage
from cdkit.retrieval.web_urls import host_of

# Of one caption or host, URLs tried at once for each image that may still be accepted.
SPARE = 2


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


class AcceptAll:
    """A judge, and an admission, that takes everything that was fetched."""

    def prepare(self, images: Sequence[tuple[Candidate, FetchedImage]]) -> None:
        return None

    def admission(self) -> Admission:
        return self

    def admit(self, place: int, candidate: Candidate, image: FetchedImage) -> str | None:
        return None

    def withdrawn(self) -> Mapping[int, str]:
        return {}


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
    known: Mapping[int, FetchedImage | FailedFetch],
    admission: Admission,
    limits: Limits,
) -> Standing:
    """Walk the candidates in order and accept until there are enough; `known` holds what was fetched or given up.

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
        outcome = known.get(place)
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
