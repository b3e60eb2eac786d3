"""The funnel of a retrieval: how many candidates were left after every step, and why there are not more images."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cdkit.core.columns import displayed
from cdkit.core.formatting import command_line
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import WEB_PORTS, spellings
from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.accept import Downloaded
from cdkit.retrieval.candidates import AT_HAND, DIGITS, CandidateSet, CandidateSettings
from cdkit.retrieval.inspect import UNDECODED

HISTOGRAM_BINS = 20
REASONS_SHOWN = 6
PLACES_SHOWN = 3
CAPTIONS_SHOWN = 3
# Captions looked at, where fewer images are asked for.
LEAST_CAPTIONS = 20
LONGEST_CAPTION = 60


@dataclass(frozen=True)
class Funnel:
    """The numbers of one retrieval; they depend on the candidates and what was behind them, never on timing.

    tried: candidates decided, in order, up to the last one accepted. generated: how many of the accepted were drawn,
    not found; they count in no other step. filtered: rows left out by what their pool says, by reason. guarded:
    `HOST:PORT` of URLs that were not asked for because of their address or port, the most frequent first.
    """

    asked: int
    threshold: float
    captions: int
    candidates: int
    tried: int
    fetched: int
    decoded: int
    accepted: int
    rejected: Mapping[str, int]
    generated: int = 0
    filtered: Mapping[str, int] = field(default_factory=dict)
    guarded: Sequence[str] = ()

    def steps(self) -> list[dict[str, Any]]:
        """One entry per step, widest first."""
        named = {
            "captions above the threshold": self.captions,
            "candidates": self.candidates,
            "tried": self.tried,
            "fetched": self.fetched,
            "decoded": self.decoded,
            **({"generated": self.generated} if self.generated else {}),
            "accepted": self.accepted,
        }
        return [{"step": step, "count": number} for step, number in named.items()]

    def shortfall(self, nearest: str = "") -> str:
        """Why there are fewer images than asked for; empty when there are enough.

        nearest: a sentence about the captions that were not similar enough.
        """
        if self.accepted >= self.asked:
            return ""
        steps = ", ".join(f"{entry['count']:,} {entry['step']}" for entry in self.steps())
        steps = steps.replace("above the threshold", f"of similarity {self.threshold:g} or more")
        sentences = [
            f"{self.accepted:,} of {self.asked:,} images found: {steps}.",
            _counted("Left out", self.rejected),
            _counted("Filtered by what the pool says", self.filtered),
            self._guard(),
            nearest,
            "For more: another prompt, --min-similarity, --per-caption.",
        ]
        return " ".join(filter(None, sentences))

    def _guard(self) -> str:
        if not self.guarded:
            return ""
        options = command_line(*(word for place in self.guarded[:PLACES_SHOWN] for word in ("--allow-host", place)))
        return (
            "Only public addresses are fetched from, at the ports 80 and 443; for servers of your own add "
            f"{options}{' …' if len(self.guarded) > PLACES_SHOWN else ''}."
        )


def _counted(what: str, reasons: Mapping[str, int]) -> str:
    if not reasons:
        return ""
    most = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{reason} {number:,}" for reason, number in most[:REASONS_SHOWN])
    return f"{what}: {named}{', …' if len(most) > REASONS_SHOWN else ''}."


def count_funnel(result: CandidateSet, done: Downloaded, asked: int, threshold: float) -> Funnel:
    """Count what became of every candidate that was decided."""
    reasons = Counter([failure.kind for _, failure in done.failed] + [reason for _, _, reason in done.turned_down])
    generated = sum(candidate.source == GENERATED for candidate, _ in done.accepted)
    drawn = generated + sum(candidate.source == GENERATED for candidate, _, _ in done.turned_down)
    fetched = len(done.accepted) + len(done.turned_down) - drawn
    undecoded = sum(number for reason, number in reasons.items() if reason in UNDECODED)
    return Funnel(
        asked=asked,
        threshold=threshold,
        captions=result.captions,
        candidates=len(result.candidates),
        tried=fetched + len(done.failed),
        fetched=fetched,
        decoded=fetched - undecoded,
        accepted=len(done.accepted),
        rejected=dict(sorted(reasons.items())),
        generated=generated,
        filtered=left_out(result.rejected),
        guarded=_guarded(done),
    )


def left_out(filtered: Mapping[str, int]) -> dict[str, int]:
    """Rows that are missing, by reason: without those whose image or caption is among the candidates already."""
    return {reason: number for reason, number in filtered.items() if reason not in AT_HAND}


def _guarded(done: Downloaded) -> list[str]:
    """Where URLs led that the guard refused, as --allow-host takes it; where a redirect led is not their owner's."""
    places: Counter[str] = Counter()
    for candidate, failure in done.failed:
        if failure.kind not in ("port", "blocked_address"):
            continue
        try:
            url = spellings(candidate.url or "")[0]
        except FetchFailure:
            continue
        stated_port = failure.kind == "port" and url.port not in WEB_PORTS
        stated_address = failure.kind == "blocked_address" and failure.detail.startswith(url.host)
        if stated_port or stated_address:
            host = f"[{url.host}]" if ":" in url.host else url.host
            places[f"{host}:{url.port}"] += 1
    return [place for place, _ in sorted(places.items(), key=lambda item: (-item[1], item[0]))]


def similarity_histogram(similarities: Sequence[float], threshold: float) -> dict[str, list[float]]:
    """Counts of the accepted images' similarities between the threshold and 1, for a report to draw."""
    import numpy as np

    low = min([threshold, *similarities])
    edges = np.linspace(low, max([1.0, *similarities]), HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(similarities, bins=edges)
    return {"edges": [round(edge, DIGITS) for edge in edges.tolist()], "counts": counts.tolist()}


def nearest_captions(
    find: Callable[[CandidateSettings], CandidateSet], wanted: int, settings: CandidateSettings
) -> str:
    """`Nearest: 'a dog' (0.71), … --min-similarity 0.71 takes 1 caption, 0.6 takes 20.`; empty without any.

    Looks again without a threshold; what the filters leave out is left out here too.
    """
    looked_at = max(wanted, LEAST_CAPTIONS)
    result = find(replace(settings, min_similarity=-1.0, select="top", max_captions=looked_at))
    best: dict[str, float] = {}
    for candidate in sorted(result.candidates, key=lambda candidate: -candidate.similarity):
        best.setdefault(candidate.caption, candidate.similarity)
    if not best:
        return ""
    similarities = list(best.values())
    places = [place for place in (1, 10, wanted) if place <= len(similarities)]
    takes = []
    for threshold in dict.fromkeys(math.floor(similarities[place - 1] * 100) / 100 for place in places):
        number = sum(similarity >= threshold for similarity in similarities)
        takes.append(f"{threshold:g} takes {number:,} caption{'s' if number > 1 else ''}")
    named = [
        f"{displayed(caption, LONGEST_CAPTION)!r} ({best[caption]:.2f})" for caption in list(best)[:CAPTIONS_SHOWN]
    ]
    return f"Nearest: {', '.join(named)}. --min-similarity {', '.join(takes)}."
