"""Selection among images that are there already: the same walk as a download's, without the waiting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cdkit.retrieval.acceptance import Judge, Limits, Standing, stand
from cdkit.retrieval.blocklist import Blocklist, blocked_url
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import FailedFetch, FetchedImage
from cdkit.retrieval.download import Downloaded
from cdkit.retrieval.failures import FetchFailure
from cdkit.retrieval.web_urls import parse_url

# Images looked at at once: enough to keep the workers busy, few enough not to look at many in vain.
SMALLEST_BATCH = 32
SPARE = 1.25


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
        batch = max(SMALLEST_BATCH, round(SPARE * (limits.wanted - len(standing.accepted))))
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
