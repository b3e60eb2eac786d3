"""README.md of a regularization set: what it is, and the lines by which `datasets.load_dataset` finds its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdkit.core.formatting import command_line, markdown_text
from cdkit.core.storage import write_text
from cdkit.fetching.addresses import WEB_PORTS
from cdkit.fetching.blocklist import BLOCKLISTED
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.urls import spellings
from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.accept import Downloaded
from cdkit.retrieval.candidates import DIGITS, Candidate, CandidateSet
from cdkit.retrieval.curate import Curator
from cdkit.retrieval.inspect import UNDECODED

_CARD = """\
---
configs:
  - config_name: default
    data_files: images/*.parquet
---
# Regularization set: {prompts}

{accepted:,} images whose captions have a similarity of at least {threshold:g} to the prompts; {asked:,} were asked
for. `images/` holds them with their captions and where each came from (`url`, `sha256` of the original file),
`rejects/` why others are not among them; `contact_sheet.png` shows them, `manifest.json` counts every step. Made by
`cdkit retrieve`.

```python
import datasets  # pip install datasets

images = datasets.load_dataset("path/to/this/folder", split="train")
```

The images belong to whoever made them: that a picture can be fetched grants no right to pass it on.
"""


def write_card(path: Path, prompts: Sequence[str], counted: Funnel) -> None:
    """Write the card."""
    text = _CARD.format(
        prompts=markdown_text(", ".join(prompts)),
        accepted=counted.accepted,
        asked=counted.asked,
        threshold=counted.threshold,
    )
    write_text(path, text)


HISTOGRAM_BINS = 20
REASONS_SHOWN = 6
PLACES_SHOWN = 3


@dataclass(frozen=True)
class Funnel:
    """The numbers of one retrieval; they depend on the candidates and what was behind them, never on timing.

    tried: candidates decided, in order, up to the last one accepted. generated: how many of the accepted were drawn,
    not found; they count in no other step. filtered: rows left out before they were candidates, by reason. guarded:
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
            # Where there are candidates, what was filtered is not what is missing.
            "" if self.candidates else _counted("Filtered", self.filtered),
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
        filtered=found.rejected,
        guarded=_guarded(done),
    )


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
        own_port = failure.kind == "port" and url.port not in WEB_PORTS
        own_address = failure.kind == "blocked_address" and failure.detail.startswith(url.host)
        if own_port or own_address:
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
