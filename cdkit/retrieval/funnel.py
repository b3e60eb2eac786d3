"""From captions to accepted images: how many were left at every step, and why the others are not there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.blocklist import BLOCKLISTED
from cdkit.retrieval.candidates import DIGITS, Candidate, CandidateSet
from cdkit.retrieval.curate import Curator
from cdkit.retrieval.download import Downloaded
from cdkit.retrieval.inspection import UNDECODED

HISTOGRAM_BINS = 20
REASONS_SHOWN = 6


@dataclass(frozen=True)
class Funnel:
    """The numbers of one retrieval; they depend on the candidates and what was behind them, never on timing.

    tried: candidates decided, in order, up to the last one accepted. generated: how many of the accepted were drawn,
    not found; they count in no other step.
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

    def shortfall(self) -> str:
        """Why there are fewer images than asked for; empty when there are enough."""
        if self.accepted >= self.asked:
            return ""
        steps = ", ".join(f"{entry['count']:,} {entry['step']}" for entry in self.steps())
        steps = steps.replace("above the threshold", f"of similarity {self.threshold:g} or more")
        more = " For more: another prompt, --min-similarity, --per-caption."
        return f"{self.accepted:,} of {self.asked:,} images found: {steps}.{self._reasons()}{more}"

    def _reasons(self) -> str:
        if not self.rejected:
            return ""
        most = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{reason} {number:,}" for reason, number in most[:REASONS_SHOWN])
        return f" Left out: {named}{', …' if len(most) > REASONS_SHOWN else ''}."


def funnel(found: CandidateSet, done: Downloaded, asked: int, threshold: float) -> Funnel:
    """Count what became of every candidate that was decided."""
    reasons = Counter([failure.kind for _, failure in done.failed] + [reason for _, _, reason in done.turned_down])
    generated = sum(candidate.source == GENERATED for candidate, _ in done.accepted)
    drawn = generated + sum(candidate.source == GENERATED for candidate, _, _ in done.turned_down)
    fetched = len(done.accepted) + len(done.turned_down) - drawn
    undecoded = sum(number for reason, number in reasons.items() if reason in UNDECODED)
    return Funnel(
        asked=asked,
        threshold=threshold,
        captions=found.captions,
        candidates=len(found.candidates),
        tried=fetched + len(done.failed),
        fetched=fetched,
        decoded=fetched - undecoded,
        accepted=len(done.accepted),
        rejected=dict(sorted(reasons.items())),
        generated=generated,
    )


def similarity_histogram(similarities: Sequence[float], threshold: float) -> dict[str, list[float]]:
    """Counts of the accepted images' similarities between the threshold and 1, for a report to draw."""
    import numpy as np

    low = min([threshold, *similarities])
    edges = np.linspace(low, max([1.0, *similarities]), HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(similarities, bins=edges)
    return {"edges": [round(edge, DIGITS) for edge in edges.tolist()], "counts": counts.tolist()}


def rejected_rows(done: Downloaded, curator: Curator) -> Iterator[dict[str, Any]]:
    """One row per candidate that was decided and is not in the set; of blocklisted ones nothing but a hash."""
    for candidate, failure in done.failed:
        yield _row(candidate, failure.kind, failure.status, failure.detail, "")
    for candidate, image, reason in done.turned_down:
        found = curator.inspection(image)
        yield _row(candidate, reason, image.status, found.detail if found.reason else "", found.sha256)


def _row(candidate: Candidate, reason: str, status: int | None, detail: str, sha256: str) -> dict[str, Any]:
    row: dict[str, Any] = {"reason": reason, "status": status, "detail": detail or None, "sha256": sha256 or None}
    if reason == BLOCKLISTED:
        return row
    facts = ("url", "caption_id", "caption", "similarity", "source")
    return row | {name: getattr(candidate, name) for name in facts}
