"""Candidates: captions above the threshold joined with their image rows, filtered, in one total order.

The order decides which images are accepted. It is: round, similarity (recomputed in fp32, rounded to six digits,
highest first), caption_id, image within its caption. Round 0 holds each caption's best images, as many as may be
accepted per caption; later rounds hold the spare ones, for when those are dead. Within a caption images are ordered
by pool similarity and then area (largest first, unknown last), then URL and source. `spread` replaces the similarity
by a seeded order in which every next caption is the one farthest from those before it; matching photos
(`cdkit.retrieval.matching`), by the turn in which a photo takes it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import without_userinfo
from cdkit.core.licences import licence_code
from cdkit.core.shards import finished_facts, part_name, read_shard, schema, write_shard
from cdkit.fetching.urls import unescaped
from cdkit.index.search import Match, encode_queries, search

if TYPE_CHECKING:
    import numpy as np

    from cdkit.core.protocols import TextEncoder
    from cdkit.index.caption_index import CaptionIndex
    from cdkit.retrieval.config import RetrieveConfig


NSFW_RATINGS = ("unlikely", "unsure", "nsfw")
# Captions taken per prompt for each image wanted: enough even where one link in ten works. Each is encoded again, so
# that more would cost seconds for nothing.
CAPTIONS_PER_IMAGE = 10
MIN_CAPTIONS = 1000
# Images kept per caption, as a multiple of those that may be accepted.
SPARE_ROUNDS = 5
DIGITS = 6
LICENCE_UNKNOWN = "licence_unknown"
# Reasons of rows whose image or caption is among the candidates already.
SAME_URL, ENOUGH_OF_CAPTION = AT_HAND = ("same_url", "enough_of_caption")
# Of an image row, what stays with the image.
_ROW_FACTS = ("url", "width", "height", "md5", "source", "nsfw", "punsafe", "licence", "attribution")
# Of spread: captions that are looked at, and how many of them are put in the diverse order, which is quadratic in it;
# the others follow by similarity.
SPREAD_CAPTIONS, SPREAD_FARTHEST = 8000, 2000


@dataclass(frozen=True)
class Candidate:
    """One image that may be fetched, with the caption and the prompt it answers.

    nsfw, punsafe: how safe its pool says it is; licence, attribution: in the pool's words; None for what the pool does
    not say. photo: whose turn took the caption, where photos are matched; photo_similarity: of the caption to it.
    """

    query: str
    caption_id: int
    caption: str
    similarity: float
    url: str | None
    width: int | None = None
    height: int | None = None
    md5: str | None = None
    source: str | None = None
    nsfw: str | None = None
    punsafe: float | None = None
    licence: str | None = None
    attribution: str | None = None
    photo: str | None = None
    photo_similarity: float | None = None


@dataclass(frozen=True)
class Likeness:
    """Which photo a caption stands for, and how similar it is to it."""

    photo: str
    similarity: float


@dataclass(frozen=True)
class CandidateSet:
    """Candidates in their order. captions, rows: found above the threshold; rejected: rows left out, by reason."""

    candidates: list[Candidate]
    captions: int
    rows: int
    rejected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CandidateSettings:
    """Which candidates are taken, and in which order: the settings of RetrieveConfig by the same names.

    min_similarity: None for the encoder's own threshold. per_caption: images that may be accepted per caption.
    max_captions: taken per prompt, best first; None for enough even where one link in ten works. The others say what
    an image row must satisfy; a value that the pool does not know passes.
    """

    min_similarity: float | None = None
    select: Literal["top", "spread"] = "top"
    per_caption: int = 1
    max_captions: int | None = None
    seed: int = 0
    min_side: int | None = None
    max_aspect_ratio: float | None = None
    nsfw_limit: Literal["unlikely", "unsure", "nsfw"] = "nsfw"
    max_punsafe: float | None = None
    max_pwatermark: float | None = None
    min_pool_similarity: float | None = None
    licence: Sequence[str] = ()

    @classmethod
    def of(cls, config: RetrieveConfig) -> CandidateSettings:
        return cls(**{entry.name: getattr(config, entry.name) for entry in fields(cls)})

    def caption_limit(self, wanted: int) -> int:
        """Captions to take per prompt for `wanted` images; raises ConfigError for impossible settings."""
        if wanted < 1 or self.per_caption < 1:
            raise ConfigError(f"At least one image, and one per caption: got {wanted} and {self.per_caption}.")
        return max(MIN_CAPTIONS, CAPTIONS_PER_IMAGE * wanted) if self.max_captions is None else self.max_captions


def find_candidates(
    index: CaptionIndex, prompts: Sequence[str], wanted: int, settings: CandidateSettings | None = None
) -> CandidateSet:
    """Candidates of an index for several prompts of one concept; a caption counts for the prompt it is closest to.

    Raises ConfigError for impossible settings; an empty result is no error, its notes and counts say why.
    """
    settings = settings or CandidateSettings()
    matches, notes = search_prompts(index, prompts, settings, settings.caption_limit(wanted))
    return ordered_candidates(matches, index.encoder, settings, notes)


def search_prompts(
    index: CaptionIndex, prompts: Sequence[str], settings: CandidateSettings, limit: int
) -> tuple[list[tuple[str, Match]], list[str]]:
    """Each prompt with its matches, at most `limit` of them, and what the user should know."""
    results = search(index, prompts, min_similarity=settings.min_similarity, limit=limit, encode_limit=2 * limit)
    notes = [index.outdated] if index.outdated else []
    notes += [f"{result.query!r}: {note}" for result in results for note in result.notes if note != index.outdated]
    notes += [
        f"{result.query!r}: the {len(result.results)} most similar captions are used; there are more."
        for result in results
        if result.more
    ]
    return [(result.query, match) for result in results for match in result.results], notes


def ordered_candidates(
    matches: Iterable[tuple[str, Match]], encoder: TextEncoder, settings: CandidateSettings, notes: Sequence[str] = ()
) -> CandidateSet:
    """Matches of several prompts as candidates, in their order."""
    ranks = ranked(best_matches(matches))
    if settings.select == "spread":
        ranks = spread_order(encoder, ranks, settings.seed)
    return join_rows(ranks, settings, notes)


def best_matches(matches: Iterable[tuple[str, Match]]) -> list[tuple[str, Match]]:
    """Each caption once, with the prompt it is most similar to; the earlier prompt where two are equal."""
    best: dict[int, tuple[str, Match]] = {}
    for query, match in matches:
        earlier = best.get(match.caption_id)
        if earlier is None or round(match.similarity, DIGITS) > round(earlier[1].similarity, DIGITS):
            best[match.caption_id] = (query, match)
    return list(best.values())


def ranked(matches: Iterable[tuple[str, Match]]) -> list[tuple[str, Match]]:
    """By similarity, then by caption_id."""
    return sorted(matches, key=lambda pair: (-round(pair[1].similarity, DIGITS), pair[1].caption_id))


def spread_order(encoder: TextEncoder, ranks: Sequence[tuple[str, Match]], seed: int) -> list[tuple[str, Match]]:
    """Ranked queries and matches in a seeded, diverse order."""
    captions = [match.caption for _, match in ranks[:SPREAD_CAPTIONS]]
    order = farthest_first(encode_queries(encoder, captions), SPREAD_FARTHEST, seed) if captions else []
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


def join_rows(
    ranks: Sequence[tuple[str, Match]],
    settings: CandidateSettings,
    notes: Sequence[str] = (),
    likeness: Mapping[int, Likeness] | None = None,
) -> CandidateSet:
    """Join ranked captions with their image rows; every URL appears once, with its best caption.

    likeness: by caption_id, where captions stand for photos.
    """
    rejected: Counter[str] = Counter()
    ordered: list[tuple[int, int, Candidate]] = []
    seen: set[str] = set()
    rows = 0
    for rank, (query, match) in enumerate(ranks):
        rows += len(match.rows)
        kept = 0
        for row in sorted(match.rows, key=_row_order):
            reason = rejection(row, settings)
            url = unescaped(row.get("url") or "")
            if reason is None and url in seen:
                reason = SAME_URL
            if reason is None and kept >= settings.per_caption * SPARE_ROUNDS:
                reason = ENOUGH_OF_CAPTION
            if reason is not None:
                rejected[reason] += 1
                continue
            if url:
                seen.add(url)
            candidate = _candidate(query, match, row, (likeness or {}).get(match.caption_id))
            ordered.append((kept // settings.per_caption, rank, candidate))
            kept += 1
    ordered.sort(key=lambda entry: entry[:2])
    candidates = [candidate for _, _, candidate in ordered]
    return CandidateSet(candidates, len(ranks), rows, dict(sorted(rejected.items())), list(notes))


def rejection(row: Mapping[str, Any], settings: CandidateSettings) -> str | None:
    """Why an image row is left out by what its pool says of it; None when it is kept."""
    if settings.licence:
        code = licence_code(row.get("licence"))
        if code not in settings.licence:
            return LICENCE_UNKNOWN if code is None else "licence"
    rating = str(row.get("nsfw") or "").lower()
    if rating in NSFW_RATINGS and NSFW_RATINGS.index(rating) > NSFW_RATINGS.index(settings.nsfw_limit):
        return "nsfw"
    if _above(row.get("punsafe"), settings.max_punsafe):
        return "punsafe"
    if _above(row.get("pwatermark"), settings.max_pwatermark):
        return "watermark"
    if _above(settings.min_pool_similarity, row.get("pool_similarity")):
        return "pool_similarity"
    sides = [side for side in (row.get("width"), row.get("height")) if side is not None]
    if sides and _above(settings.min_side, min(sides)):
        return "too_small"
    if len(sides) == 2 and min(sides) > 0 and _above(max(sides) / min(sides), settings.max_aspect_ratio):
        return "aspect_ratio"
    return None


def _above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _row_order(row: Mapping[str, Any]) -> tuple[float, int, str, str]:
    similarity = row.get("pool_similarity")
    rank = 2.0 if similarity is None or math.isnan(similarity) else -float(similarity)
    area = (row.get("width") or 0) * (row.get("height") or 0)
    return (rank, -area, row.get("url") or "", row.get("source") or "")


def _candidate(query: str, match: Match, row: Mapping[str, Any], likeness: Likeness | None) -> Candidate:
    facts = {name: row.get(name) for name in _ROW_FACTS}
    if facts["url"]:
        # Fetched without them anyway; indexes of earlier versions, and folders at hand, may have some.
        facts["url"] = without_userinfo(facts["url"])
    candidate = Candidate(query, match.caption_id, match.caption, round(match.similarity, DIGITS), **facts)
    if likeness is None:
        return candidate
    return replace(candidate, photo=likeness.photo, photo_similarity=likeness.similarity)


def write_candidates(folder: Path, result: CandidateSet, fingerprint: str) -> None:
    """Write candidates/ as one shard whose facts are the counts and notes."""
    import pyarrow as pa

    table = pa.Table.from_pylist([asdict(candidate) for candidate in result.candidates], schema=schema("candidates"))
    facts = {"captions": result.captions, "rows": result.rows, "rejected": result.rejected, "notes": result.notes}
    write_shard(folder / part_name(0), table, fingerprint=fingerprint, facts=facts)


def read_candidates(folder: Path, fingerprint: str) -> CandidateSet | None:
    """Read candidates/ back; None when it was not written under this fingerprint."""
    facts = finished_facts(folder / part_name(0), fingerprint)
    if facts is None:
        return None
    rows = read_shard(folder / part_name(0)).to_pylist()
    candidates = [Candidate(**{name: _as_decided(name, value) for name, value in row.items()}) for row in rows]
    return CandidateSet(candidates, facts["captions"], facts["rows"], facts["rejected"], facts["notes"])


def _as_decided(name: str, value: Any) -> Any:
    """A similarity as it was before it was stored as float32; other values as they are."""
    return round(value, DIGITS) if name.endswith("similarity") and value is not None else value


def require_licences(result: CandidateSet) -> None:
    """Raise InputError when every image was left out because nothing is known of its licence: it is not free."""
    if not result.candidates and result.rows and set(result.rejected) == {LICENCE_UNKNOWN}:
        raise InputError(
            "The pool of this index states no licence that is known, and what is unknown is not free.",
            hint="Leave --licence out, or build the index from a pool with a licence column (pd12m), or with "
            "--pool-licence where its publisher states one for all images.",
        )


def require_urls(result: CandidateSet) -> None:
    """Raise InputError when there are candidates but none has a URL: there is nothing to fetch."""
    if result.candidates and not any(candidate.url for candidate in result.candidates):
        raise InputError(
            "The pool of this index has no URLs, so its images cannot be fetched.",
            hint="Give the images themselves with --images: img2dataset output, or a folder with captions.",
        )
