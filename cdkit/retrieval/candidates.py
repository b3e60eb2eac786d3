"""Candidates: captions above the threshold joined with their image rows, filtered, in one total order.

The order decides which images are accepted. It is: round, similarity (recomputed in fp32, rounded to six digits,
highest first), caption_id, image within its caption. Round 0 holds each caption's best images, as many as may be
accepted per caption; later rounds hold the spare ones, for when those are dead. Within a caption images are ordered
by pool similarity and then area (largest first, unknown last), then URL and source. `spread` replaces the similarity
by a seeded order in which every next caption is the one farthest from those before it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import without_userinfo
from cdkit.core.shards import schema
from cdkit.fetching.urls import unescaped
from cdkit.index.search import Match, encode_queries, search
from cdkit.retrieval.config import CandidateSettings, Filters

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from cdkit.core.protocols import TextEncoder
    from cdkit.index.caption_index import CaptionIndex


# Images kept per caption, as a multiple of those that may be accepted.
SPARE_ROUNDS = 5
DIGITS = 6


@dataclass(frozen=True)
class Candidate:
    """One image that may be fetched, with the caption and the prompt it answers."""

    query: str
    caption_id: int
    caption: str
    similarity: float
    url: str | None
    width: int | None = None
    height: int | None = None
    md5: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class CandidateSet:
    """Candidates in their order. captions, rows: found above the threshold; rejected: rows left out, by reason."""

    candidates: list[Candidate]
    captions: int
    rows: int
    rejected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_candidates(
    index: CaptionIndex, prompts: Sequence[str], wanted: int, settings: CandidateSettings | None = None
) -> CandidateSet:
    """Candidates of an index for several prompts of one concept; a caption counts for the prompt it is closest to.

    Raises ConfigError for impossible settings; an empty result is no error, its notes and counts say why.
    """
    settings = settings or CandidateSettings()
    limit = settings.caption_limit(wanted)
    results = search(index, prompts, min_similarity=settings.min_similarity, limit=limit, encode_limit=2 * limit)
    notes = [index.outdated] if index.outdated else []
    notes += [f"{result.query!r}: {note}" for result in results for note in result.notes if note != index.outdated]
    notes += [
        f"{result.query!r}: the {len(result.results)} most similar captions are used; there are more."
        for result in results
        if result.more
    ]
    found = ((result.query, match) for result in results for match in result.results)
    return ordered_candidates(found, index.encoder, settings, notes)


def ordered_candidates(
    found: Iterable[tuple[str, Match]], encoder: TextEncoder, settings: CandidateSettings, notes: Sequence[str] = ()
) -> CandidateSet:
    """Matches of several prompts as candidates, in their order."""
    ranks = ranked(best_matches(found))
    if settings.select == "spread":
        ranks = spread_order(encoder, ranks, settings.seed)
    return join_rows(ranks, settings.filters, per_caption=settings.per_caption, notes=notes)


def best_matches(found: Iterable[tuple[str, Match]]) -> list[tuple[str, Match]]:
    """Each caption once, with the prompt it is most similar to; the earlier prompt where two are equal."""
    best: dict[int, tuple[str, Match]] = {}
    for query, match in found:
        known = best.get(match.caption_id)
        if known is None or round(match.similarity, DIGITS) > round(known[1].similarity, DIGITS):
            best[match.caption_id] = (query, match)
    return list(best.values())


def ranked(found: Iterable[tuple[str, Match]]) -> list[tuple[str, Match]]:
    """By similarity, then by caption_id."""
    return sorted(found, key=lambda pair: (-round(pair[1].similarity, DIGITS), pair[1].caption_id))


def join_rows(
    ranks: Sequence[tuple[str, Match]], filters: Filters, *, per_caption: int, notes: Sequence[str] = ()
) -> CandidateSet:
    """Join ranked captions with their image rows; every URL appears once, with its best caption."""
    rejected: Counter[str] = Counter()
    ordered: list[tuple[int, int, Candidate]] = []
    seen: set[str] = set()
    rows = 0
    for rank, (query, match) in enumerate(ranks):
        rows += len(match.rows)
        kept = 0
        for row in sorted(match.rows, key=_row_order):
            reason = filters.reason(row)
            url = unescaped(row.get("url") or "")
            if reason is None and url in seen:
                reason = "same_url"
            if reason is None and kept >= per_caption * SPARE_ROUNDS:
                reason = "enough_of_caption"
            if reason is not None:
                rejected[reason] += 1
                continue
            if url:
                seen.add(url)
            ordered.append((kept // per_caption, rank, _candidate(query, match, row)))
            kept += 1
    ordered.sort(key=lambda entry: entry[:2])
    candidates = [candidate for _, _, candidate in ordered]
    return CandidateSet(candidates, len(ranks), rows, dict(sorted(rejected.items())), list(notes))


def _row_order(row: Mapping[str, Any]) -> tuple[float, int, str, str]:
    similarity = row.get("pool_similarity")
    rank = 2.0 if similarity is None or math.isnan(similarity) else -float(similarity)
    area = (row.get("width") or 0) * (row.get("height") or 0)
    return (rank, -area, row.get("url") or "", row.get("source") or "")


def _candidate(query: str, match: Match, row: Mapping[str, Any]) -> Candidate:
    facts = {name: row.get(name) for name in ("url", "width", "height", "md5", "source")}
    if facts["url"]:
        # Fetched without them anyway; indexes of earlier versions, and folders at hand, may have some.
        facts["url"] = without_userinfo(facts["url"])
    return Candidate(query, match.caption_id, match.caption, round(match.similarity, DIGITS), **facts)


def candidates_table(candidates: Sequence[Candidate]) -> pa.Table:
    """Candidates as a table, in their order."""
    import pyarrow as pa

    fields = schema("candidates")
    columns = {name: [getattr(candidate, name) for candidate in candidates] for name in fields.names}
    return pa.table(columns, schema=fields)


def write_candidates(folder: Path, found: CandidateSet, fingerprint: str) -> None:
    """Write candidates/ as one shard whose facts are the counts and notes."""
    from cdkit.core.shards import part_name, write_shard

    facts = {"captions": found.captions, "rows": found.rows, "rejected": found.rejected, "notes": found.notes}
    write_shard(folder / part_name(0), candidates_table(found.candidates), fingerprint=fingerprint, facts=facts)


def read_candidates(folder: Path, fingerprint: str) -> CandidateSet | None:
    """Read candidates/ back; None when it was not written under this fingerprint."""
    import pyarrow.parquet as pq

    from cdkit.core.shards import finished_facts, part_name

    facts = finished_facts(folder / part_name(0), fingerprint)
    if facts is None:
        return None
    rows = pq.read_table(folder / part_name(0)).to_pylist()
    candidates = [Candidate(**row | {"similarity": round(row["similarity"], DIGITS)}) for row in rows]
    return CandidateSet(candidates, facts["captions"], facts["rows"], facts["rejected"], facts["notes"])


def require_urls(found: CandidateSet) -> None:
    """Raise InputError when there are candidates but none has a URL: there is nothing to fetch."""
    if found.candidates and not any(candidate.url for candidate in found.candidates):
        raise InputError(
            "The pool of this index has no URLs, so its images cannot be fetched.",
            hint="Give the images themselves with --images: img2dataset output, or a folder with captions.",
        )


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


# The order is quadratic in these; captions beyond them follow by similarity.
FARTHEST = 2000
POOL = 8000


def spread_order(encoder: TextEncoder, ranks: Sequence[tuple[str, Match]], seed: int) -> list[tuple[str, Match]]:
    """Ranked queries and matches in a seeded, diverse order."""
    captions = [match.caption for _, match in ranks[:POOL]]
    order = farthest_first(encode_queries(encoder, captions), FARTHEST, seed) if captions else []
    chosen = set(order)
    order += [place for place in range(len(ranks)) if place not in chosen]
    return [ranks[place] for place in order]


def farthest_first(vectors: np.ndarray, count: int, seed: int) -> list[int]:
    """Places of `count` rows of float32 [n, d], normalised: a random one, then always the farthest from those chosen.

    Of equally far rows the first is taken.
    """
    import numpy as np

    number = len(vectors)
    if number == 0:
        return []
    order = [int(np.random.default_rng(seed).integers(number))]
    nearest = np.full(number, -np.inf, dtype=np.float32)
    while len(order) < min(count, number):
        nearest = np.maximum(nearest, vectors @ vectors[order[-1]])
        nearest[order[-1]] = np.inf
        order.append(int(np.argmin(nearest)))
    return order
