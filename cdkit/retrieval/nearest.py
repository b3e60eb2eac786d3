"""Where no caption is similar enough: the captions nearest to the prompts, and the thresholds that would take some."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from cdkit.retrieval.candidates import CandidateSet, CandidateSettings

SHOWN = 3
# Captions looked at, where fewer images are asked for.
LEAST_CAPTIONS = 20
LONGEST = 60


@dataclass(frozen=True)
class Nearest:
    """captions: the nearest with their similarities, best first. thresholds: least similarity → captions it takes."""

    captions: list[tuple[str, float]]
    thresholds: dict[float, int]

    def sentence(self) -> str:
        """`Nearest: 'a dog' (0.71), … --min-similarity 0.71 takes 1 caption, 0.6 takes 20.`; empty without any."""
        if not self.captions:
            return ""
        named = ", ".join(f"{_short(caption)!r} ({similarity:.2f})" for caption, similarity in self.captions)
        takes = ", ".join(
            f"{threshold:g} takes {number:,} caption{'s' if number > 1 else ''}"
            for threshold, number in self.thresholds.items()
        )
        return f"Nearest: {named}. --min-similarity {takes}."


def nearest_captions(
    find: Callable[[CandidateSettings], CandidateSet], wanted: int, settings: CandidateSettings
) -> Nearest:
    """Look again without a threshold; what the filters leave out is left out here too."""
    looked_at = max(wanted, LEAST_CAPTIONS)
    found = find(replace(settings, min_similarity=-1.0, select="top", max_captions=looked_at))
    best: dict[str, float] = {}
    for candidate in sorted(found.candidates, key=lambda candidate: -candidate.similarity):
        best.setdefault(candidate.caption, candidate.similarity)
    similarities = list(best.values())
    thresholds: dict[float, int] = {}
    for place in (1, 10, wanted):
        if place <= len(similarities):
            threshold = math.floor(similarities[place - 1] * 100) / 100
            thresholds[threshold] = sum(similarity >= threshold for similarity in similarities)
    return Nearest(list(best.items())[:SHOWN], thresholds)


def _short(caption: str) -> str:
    return caption if len(caption) <= LONGEST else f"{caption[: LONGEST - 1]}…"
