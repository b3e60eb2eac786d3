"""Search: candidates from FAISS, re-ranked by similarities computed again, never by a quantised estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import redacted
from cdkit.core.text import clean_caption, is_text
from cdkit.index.caption_index import CaptionIndex, open_index
from cdkit.index.faiss_index import Candidates

if TYPE_CHECKING:
    import numpy as np

    from cdkit.core.protocols import TextEncoder

LIMIT = 20
FIRST_CANDIDATES = 256
# FAISS keeps the best k in a heap, which is slow for more than this; everything above a floor is not.
MOST_TOP = 4096
# Stored fp16 embeddings are at most 2e-4 off; within this of a decision, rows are encoded again.
CLOSE = 1e-3
ENCODE_LIMIT = 4096
# Captions are encoded again in chunks by rank, small ones for the first ranks.
SMALL_CHUNK, SMALL_CHUNKS_END, LARGE_CHUNK = 32, 256, 1024


@dataclass(frozen=True)
class Match:
    """One caption found: its similarity and its image rows. recomputed: whether it was encoded again in fp32."""

    caption_id: int
    caption: str
    similarity: float
    rows: list[dict[str, Any]]
    recomputed: bool = True

    def as_json(self) -> dict[str, Any]:
        return {
            "caption_id": str(self.caption_id),
            "caption": self.caption,
            "similarity": round(self.similarity, 6),
            # An index of an earlier version may hold URLs with a password.
            "rows": redacted(self.rows),
        }


@dataclass(frozen=True)
class SearchResult:
    """The answer to one query. more: whether further captions above the threshold exist.

    encoded: captions encoded again for this answer, of at most encode_limit; notes: what the user should know.
    may_have_missed: whether this answer itself shows that captions above the threshold may have been missed: some were
    not checked, or some that were found strayed further from their estimates than the margin. A note then says so.
    """

    query: str
    min_similarity: float
    results: list[Match]
    more: bool
    encoded: int
    encode_limit: int
    notes: list[str] = field(default_factory=list)
    may_have_missed: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "query": self.query,
            "results": [match.as_json() for match in self.results],
            "more": self.more,
            "min_similarity": self.min_similarity,
            "encoded": self.encoded,
            "encode_limit": self.encode_limit,
            "may_have_missed": self.may_have_missed,
            "notes": self.notes,
        }


def search(
    index: CaptionIndex | Path,
    texts: Sequence[str],
    *,
    min_similarity: float | None = None,
    limit: int = LIMIT,
    encode_limit: int = ENCODE_LIMIT,
    encoder: TextEncoder | str | None = None,
) -> list[SearchResult]:
    """For each text, the captions of at least `min_similarity` (default: the encoder's own), best first to `limit`.

    encode_limit bounds the captions encoded again per text. Raises ConfigError for an impossible setting or an empty
    text, InputError for an index that cannot be used.
    """
    _check(texts, min_similarity, limit, encode_limit)
    opened = index if isinstance(index, CaptionIndex) else open_index(Path(index), encoder)
    least = opened.default_threshold if min_similarity is None else min_similarity
    vectors = encode_queries(opened.encoder, texts)
    counts = opened.encoder.token_counts(texts)
    answers = []
    for text, vector, tokens in zip(texts, vectors, counts.tolist(), strict=True):
        notes = [opened.outdated] if opened.outdated else []
        if tokens > opened.encoder.context_length:
            notes.append(
                f"The query has {tokens} tokens; the encoder reads the first {opened.encoder.context_length} only."
            )
        answers.append(_Search(opened, vector, least, limit, encode_limit).run(text, notes))
    return answers


def search_vector(
    index: CaptionIndex,
    vector: np.ndarray,
    *,
    min_similarity: float,
    limit: int = LIMIT,
    encode_limit: int = ENCODE_LIMIT,
) -> SearchResult:
    """The captions most similar to an embedding of the index's space: float32 [dimension], normalised here.

    Raises ConfigError for an impossible setting, and for a vector of another length or without a direction.
    """
    import numpy as np

    _check(["a vector"], min_similarity, limit, encode_limit)
    query = np.asarray(vector, dtype=np.float32)
    length = float(np.linalg.norm(query.astype(np.float64)))
    if query.shape != (index.encoder.dimension,) or not 0 < length < np.inf:
        raise ConfigError(
            f"A query of this index is {index.encoder.dimension} finite numbers, not all 0 (got {query.size}).",
            hint=f"Make it with the encoder {index.encoder.spec!r}.",
        )
    return _Search(index, query / np.float32(length), min_similarity, limit, encode_limit).run("", [])


def nearest_similarities(index: CaptionIndex, query: np.ndarray, count: int) -> np.ndarray:
    """The `count` greatest similarities to float32 [dimension], normalised, best first.

    By stored embeddings (2e-4 off at most) where the index keeps them, else by estimate.
    """
    import numpy as np

    found = index.faiss.top(query, count, selector=index.selector)
    similarities = _stored(index, query, found)[1] if index.embeddings.any else found.similarities
    return np.sort(similarities)[::-1]


def _check(texts: Sequence[str], min_similarity: float | None, limit: int, encode_limit: int) -> None:
    problems = [f"query {number + 1} is empty" for number, text in enumerate(texts) if not clean_caption(text)]
    problems += [f"query {number + 1} is not UTF-8" for number, text in enumerate(texts) if not is_text(text)]
    if not texts:
        problems.append("there is no query")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        problems.append(f"min_similarity: a cosine between -1 and 1 (got {min_similarity})")
    if limit < 1:
        problems.append(f"limit: at least 1 (got {limit})")
    if encode_limit < 0:
        problems.append(f"encode_limit: at least 0 (got {encode_limit})")
    if problems:
        raise ConfigError("This search cannot be done:", problems=problems)


def encode_queries(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """float32 [n, dimension] of texts as written; raises InputError when the encoder gives numbers that are none."""
    import numpy as np

    vectors = np.ascontiguousarray(encoder.encode(texts), dtype=np.float32)
    if not np.isfinite(vectors).all():
        raise InputError(f"The encoder {encoder.spec!r} gives NaN.", hint="Its checkpoint is broken; get another.")
    return vectors


def _chunk_end(count: int) -> int:
    """The rank at which the chunk ends that holds the last of `count` captions."""
    size = SMALL_CHUNK if count <= SMALL_CHUNKS_END else LARGE_CHUNK
    return -(-count // size) * size


def _chunk_starts(count: int) -> list[int]:
    """Where the chunks of `count` captions begin, but for the first."""
    small = range(SMALL_CHUNK, min(count, SMALL_CHUNKS_END + 1), SMALL_CHUNK)
    return [*small, *range(LARGE_CHUNK, count, LARGE_CHUNK)]


def candidates(index: CaptionIndex, query: np.ndarray, least: float, limit: int) -> tuple[Candidates, bool]:
    """Every caption that may be among the best `limit` of at least `least`, and whether estimates were cut there.

    An estimate lies within the measured margin of the truth, so that the best `limit` by estimate push the floor up:
    nothing 2 margins below the last of them can be among the best.
    """
    import numpy as np

    floor = least - index.margin
    if limit > MOST_TOP:
        return index.faiss.within(query, floor, selector=index.selector), False
    first = index.faiss.top(query, max(FIRST_CANDIDATES, limit + 1), selector=index.selector)
    reached = np.sort(first.similarities)[::-1]
    cut = False
    if len(reached) > limit and reached[limit] - 2 * index.margin > floor:
        floor, cut = float(reached[limit]) - 2 * index.margin, True
    complete = len(reached) < max(FIRST_CANDIDATES, limit + 1) or reached[-1] <= floor
    count = int((first.similarities > floor).sum())
    if complete and index.faiss.few(count):
        # To the end of the chunk, so that who asks for more has no other captions in it.
        order = np.lexsort((first.ids, -first.similarities))[: _chunk_end(count)]
        keep = order[first.similarities[order] > least - index.margin]
        return Candidates(first.ids[keep], first.similarities[keep]), cut
    return index.faiss.within(query, floor, selector=index.selector), cut


def similar(index: CaptionIndex, query: np.ndarray, least: float, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and similarities by stored embeddings (2e-4 off at most), of at least `least` − 1e-3, best first.

    query: float32 [dimension], normalised. Needs an index that keeps embeddings, or an exact one.
    """
    near, _ = candidates(index, query, least, limit)
    return _ranked(*_stored(index, query, near), least - CLOSE)


def _stored(index: CaptionIndex, query: np.ndarray, near: Candidates) -> tuple[np.ndarray, np.ndarray]:
    if index.faiss.layout_exact:
        return near.ids, near.similarities
    ids, vectors = index.embeddings.find(near.ids)
    return ids, vectors @ query if len(ids) else near.similarities[:0]


def _ranked(ids: np.ndarray, similarities: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    keep = similarities >= least
    ids, similarities = ids[keep], similarities[keep]
    order = np.lexsort((ids, -similarities))
    return ids[order], similarities[order]


def _strayed_note(strayed: int, found: int) -> str:
    return (
        f"{strayed:,} of the {found:,} captions found lie further above their estimates than this index's margin: "
        "others near the threshold may have been missed. A lower --min-similarity looks further."
    )


@dataclass
class _Search:
    """One query on its way: similarities by id, first approximate, then recomputed where it matters."""

    index: CaptionIndex
    query: np.ndarray
    least: float
    limit: int
    encode_limit: int
    captions: dict[int, str] = field(default_factory=dict)
    exact: dict[int, float] = field(default_factory=dict)
    capped: bool = False

    @property
    def stored(self) -> bool:
        """Whether similarities come from stored vectors, not from estimates."""
        return self.index.faiss.layout_exact or self.index.embeddings.any

    def run(self, text: str, notes: list[str]) -> SearchResult:
        near, cut = candidates(self.index, self.query, self.least, self.limit)
        if self.stored:
            ids, similarities = _ranked(*_stored(self.index, self.query, near), self.least - CLOSE)
            slack = CLOSE
        else:
            ids, similarities = near.ids, near.similarities
            slack = self.index.margin
        self._recompute(ids, similarities, slack)
        ranked = self._final(ids, similarities)
        chosen = ranked[: self.limit]
        more = len(ranked) > self.limit or (len(ranked) >= self.limit and (cut or self.capped))
        if self.capped:
            notes = [*notes, f"Only {self.encode_limit} captions were encoded again; raise the limit to check more."]
        strayed = self._strayed(near, ranked)
        if strayed:
            notes = [*notes, _strayed_note(strayed, len(ranked))]
        missed = self.capped or strayed > 0
        matches = self._matches(chosen)
        return SearchResult(text, self.least, matches, more, len(self.exact), self.encode_limit, notes, missed)

    def _strayed(self, near: Candidates, ranked: Sequence[tuple[float, int]]) -> int:
        """How many of the captions found are further above their estimates than the margin that candidates get."""
        estimates = dict(zip(near.ids.tolist(), near.similarities.tolist(), strict=True))
        return sum(-negative - estimates[number] > self.index.margin for negative, number in ranked)

    def _recompute(self, ids: np.ndarray, similarities: np.ndarray, slack: float) -> None:
        """Encode again, best first: rows that may be reported, and rows that lie close to the threshold.

        By whole chunks of ranks: the last digits follow from what is encoded together, and that does not depend on how
        many are asked for.
        """
        import numpy as np

        boundary = similarities[self.limit] - 2 * slack if len(similarities) > self.limit else -np.inf
        wanted = similarities >= boundary
        close = np.abs(similarities - self.least) <= CLOSE if self.stored else np.zeros_like(wanted)
        wanted |= close
        if wanted.sum() > self.encode_limit:
            # Rows near the threshold come first: for them the last digits decide.
            first = np.argsort(~close, kind="stable")
            wanted[first[wanted[first]][self.encode_limit :]] = False
            self.capped = True
        chunks = np.split(np.arange(len(ids)), _chunk_starts(len(ids)))
        whole = [chunk for chunk in chunks if wanted[chunk].any()]
        if sum(map(len, whole)) > self.encode_limit:
            whole = [chunk[wanted[chunk]] for chunk in whole]
        self.captions.update(self.index.records.captions(ids[np.concatenate([*whole, np.empty(0, np.int64)])]))
        for chunk in whole:
            left = [number for number in ids[chunk].tolist() if number in self.captions]
            if left:
                vectors = encode_queries(self.index.encoder, [self.captions[number] for number in left])
                self.exact.update(zip(left, (vectors @ self.query).tolist(), strict=True))

    def _final(self, ids: np.ndarray, similarities: np.ndarray) -> list[tuple[float, int]]:
        """(−similarity, id) of what is at least as similar as asked, best first.

        Without stored embeddings an estimate decides nothing: what was not encoded again is left out.
        """
        ranked = []
        for number, approximate in zip(ids.tolist(), similarities.tolist(), strict=True):
            similarity = self.exact.get(number, approximate if self.stored else None)
            if similarity is not None and similarity >= self.least:
                ranked.append((-similarity, number))
        return sorted(ranked)

    def _matches(self, chosen: list[tuple[float, int]]) -> list[Match]:
        import numpy as np

        ids = np.array([number for _, number in chosen], dtype=np.int64)
        missing = np.array([number for number in ids.tolist() if number not in self.captions], dtype=np.int64)
        if len(missing):
            self.captions.update(self.index.records.captions(missing))
        rows = self.index.records.image_rows(ids)
        return [
            Match(number, self.captions[number], -negative, rows.get(number, []), number in self.exact)
            for negative, number in chosen
            if number in self.captions
        ]
