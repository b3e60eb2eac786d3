"""A judge of images that looks at none of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cdkit.fetching.job import FetchedImage
from cdkit.retrieval.accept import Admission, Downloaded
from cdkit.retrieval.candidates import Candidate


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


def failures_of(done: Downloaded) -> dict[str, int]:
    """URLs that a download gave up, by failure kind."""
    return dict(sorted(Counter(failure.kind for _, failure in done.failed).items()))
