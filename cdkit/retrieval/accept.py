"""Which images are accepted: the first N in candidate order that pass, whichever server answered first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from cdkit.core.text import caption_id, clean_caption
from cdkit.fetching.batches import WaveEnd
from cdkit.fetching.blocklist import Blocklist, blocked_url
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.outcomes import FailedFetch, FetchedImage
from cdkit.fetching.urls import host_of, parse_url
from cdkit.pictures.picture import Content
from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.config import Limits

# Of one caption or host, URLs tried at once for each image that may still be accepted.
SPARE = 2


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

    def failures(self) -> dict[str, int]:
        """URLs given up, by failure kind."""
        return dict(sorted(Counter(failure.kind for _, failure in self.failed).items()))


@dataclass(frozen=True)
class MadeImage:
    """An image that was drawn for a prompt, which is its caption."""

    content: Content
    prompt: str


# Draws the images with these numbers, always the same for a number.
ImageMaker = Callable[[range], Sequence[MadeImage]]
# Some of what is drawn is turned down; a model whose every image is alike must not draw for ever.
MOST_ROUNDS = 4


def fill(done: Downloaded, make: ImageMaker, *, wanted: int, judge: Judge) -> Downloaded:
    """Have images made until `wanted` are accepted, or until too many of them were turned down."""
    made: list[MadeImage] = []
    filled = done
    for _ in range(MOST_ROUNDS):
        missing = wanted - len(filled.accepted)
        if missing <= 0:
            break
        made += make(range(len(made), len(made) + missing))
        filled = top_up(done, made, wanted=wanted, judge=judge)
    return filled


def top_up(done: Downloaded, made: Sequence[MadeImage], *, wanted: int, judge: Judge) -> Downloaded:
    """Add images of `made`, in their order, until `wanted` are accepted; their `source` is `generated`.

    They must pass the same curation, and be no near-duplicates of what was found. What was found stays.
    """
    candidates = [candidate for candidate, _ in done.accepted]
    images = {place: image for place, (_, image) in enumerate(done.accepted)}
    for image in made:
        images[len(candidates)] = FetchedImage(None, image.content)
        number = caption_id(clean_caption(image.prompt))
        candidates.append(Candidate(image.prompt, number, image.prompt, 1.0, None, source=GENERATED))
    # A prompt has many images; the limits per caption and host were kept before.
    both = select(candidates, images, limits=Limits(wanted, per_caption=wanted), judge=judge)
    return replace(
        done,
        accepted=both.accepted,
        turned_down=[*done.turned_down, *both.turned_down],
        exhausted=len(both.accepted) < wanted,
    )


# Images looked at at once: enough to keep the workers busy, few enough not to look at many in vain.
SMALLEST_BATCH = 32
SPARE_AT_HAND = 1.25


def select(
    candidates: Sequence[Candidate],
    images: Mapping[int, FetchedImage | FailedFetch],
    *,
    limits: Limits,
    judge: Judge,
    blocklist: Blocklist | None = None,
) -> Downloaded:
    """Accept images in candidate order until there are enough; a candidate without an image fails as `missing`."""
    listed = (blocklist or Blocklist()).urls
    known: dict[int, FetchedImage | FailedFetch] = {}
    for place, candidate in enumerate(candidates):
        url = _plain(candidate.url) if listed else None
        if url in listed:
            known[place] = blocked_url(str(url))
        elif isinstance(image := images.get(place), FailedFetch) or image is None:
            known[place] = image or FailedFetch(candidate.url, "missing", detail="not among the images given")
    looked_at = 0
    while not (standing := stand(candidates, known, judge.admission(), limits)).complete:
        batch = max(SMALLEST_BATCH, round(SPARE_AT_HAND * (limits.wanted - len(standing.accepted))))
        chosen = standing.undecided[:batch]
        fresh = [(candidates[place], image) for place in chosen if isinstance(image := images[place], FetchedImage)]
        judge.prepare(fresh)
        looked_at += len(fresh)
        known |= {place: images[place] for place in chosen}
    return _result(candidates, known, standing, limits, looked_at)


def _result(
    candidates: Sequence[Candidate],
    known: Mapping[int, FetchedImage | FailedFetch],
    standing: Standing,
    limits: Limits,
    looked_at: int,
) -> Downloaded:
    return Downloaded(
        accepted=[(candidates[place], known[place]) for place in standing.accepted],  # type: ignore[misc]
        turned_down=[
            (candidates[place], known[place], reason)  # type: ignore[misc]
            for place, reason in sorted(standing.turned_down.items())
        ],
        failed=[(candidates[place], known[place]) for place in standing.failed],  # type: ignore[misc]
        tried=looked_at,
        fetched=looked_at,
        exhausted=len(standing.accepted) < limits.wanted,
    )


def _plain(url: str | None) -> str | None:
    try:
        return parse_url(url or "").text
    except FetchFailure:
        return None
