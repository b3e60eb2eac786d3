"""What is reviewed: the pictures of a set and what was left out of it, or the candidates of an index for prompts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import redacted
from cdkit.core.manifest import read_manifest
from cdkit.core.shards import open_shard, parts, read_shard
from cdkit.fetching.urls import host_of
from cdkit.index.caption_index import open_index
from cdkit.pictures.picture import names_alike
from cdkit.pictures.regularization_set import GENERATED, set_shards
from cdkit.retrieval.candidates import DIGITS, CandidateSettings, find_candidates
from cdkit.retrieval.decisions import Decision
from cdkit.retrieval.set_folder import REJECTS

if TYPE_CHECKING:
    import pyarrow as pa

# Bits of 64 in which the hashes of two pictures differ that stand side by side: more than what retrieval drops.
ALIKE_BITS = 12
# Of a set's rows, what a review shows; pools and sets of other makers may know a licence too.
COLUMNS = (
    *("key", "caption", "similarity", "url", "width", "height", "sha256", "phash", "source", "query"),
    "attribution",
)
LICENCES = ("licence", "license")
_PHASH = re.compile(r"[0-9a-fA-F]{1,16}")
# Row groups of pictures kept in memory.
GROUPS_KEPT = 3


@dataclass(frozen=True)
class ReviewPicture:
    """One picture. place: file, row group and row of its content; None for a candidate, which is on the web only."""

    facts: Mapping[str, Any]
    place: tuple[Path, int, int] | None = None

    @property
    def key(self) -> str:
        return str(self.facts["key"])

    @property
    def phash(self) -> int | None:
        text = str(self.facts.get("phash") or "")
        return int(text, 16) if _PHASH.fullmatch(text) else None

    def content(self) -> bytes | None:
        """The picture file; raises InputError when the set was changed meanwhile."""
        if self.place is None:
            return None
        path, group, row = self.place
        try:
            value = _images(path, group)[row].as_py()
        except (OSError, IndexError, ValueError) as error:
            raise InputError(f"{path} was changed while it is reviewed.", hint="Start the review again.") from error
        content: bytes | None = (value or {}).get("bytes")
        return content

    def decision(self) -> Decision:
        """A decision about it, yet to be made."""
        key, sha256, caption = (str(self.facts.get(name) or "") for name in ("key", "sha256", "caption"))
        phash = "" if self.phash is None else f"{self.phash:016x}"
        return Decision(0, "reject", key, sha256, phash, self.facts.get("url") or None, caption, decided="")

    def as_json(self) -> dict[str, Any]:
        facts: dict[str, Any] = redacted(dict(self.facts))
        drawn = facts.get("source") == GENERATED
        similarity = None if drawn or facts.get("similarity") is None else round(facts["similarity"], DIGITS)
        licence = next((facts.pop(name) for name in LICENCES if facts.get(name)), None)
        host = host_of(facts["url"]) if facts.get("url") else ""
        added = {"similarity": similarity, "licence": licence, "host": host}
        return {**facts, **added, "stored": self.place is not None}


@lru_cache(maxsize=GROUPS_KEPT)
def _images(path: Path, group: int) -> pa.ChunkedArray:
    with open_shard(path, hint="Start the review again.") as file:
        return file.read_row_group(group, columns=["image"])["image"]


@dataclass(frozen=True)
class ReviewSet:
    """Pictures in their order. left_out: rows of rejects, each with its reason; encoder: what embeds pictures."""

    folder: Path
    prompts: Sequence[str]
    threshold: float | None
    pictures: Sequence[ReviewPicture]
    left_out: Sequence[Mapping[str, Any]] = ()
    encoder: str | None = None
    alike_bits: int = ALIKE_BITS

    @cached_property
    def by_key(self) -> dict[str, ReviewPicture]:
        return {picture.key: picture for picture in self.pictures}

    @cached_property
    def alike(self) -> list[list[str]]:
        """Keys of pictures that look alike, group by group, in their order."""
        hashed = [(picture.key, picture.phash) for picture in self.pictures if picture.phash is not None]
        return names_alike(hashed, self.alike_bits)


def read_review_set(folder: Path, *, encoder: str | None = None, alike_bits: int = ALIKE_BITS) -> ReviewSet:
    """A finished regularization set; raises InputError when there is none.

    encoder: what embeds the pictures for the map; None for the one that the set's captions were compared with.
    """
    pictures = [picture for path in set_shards(folder) for picture in _pictures(path)]
    manifest = read_manifest(folder)
    details: Mapping[str, Any] = manifest.details if manifest is not None else {}
    left_out = [row for path in parts(folder / REJECTS) for row in _rows(path)]
    return ReviewSet(
        folder,
        list(details.get("prompts") or []),
        details.get("threshold"),
        pictures,
        left_out,
        encoder or details.get("encoder"),
        alike_bits,
    )


def _pictures(path: Path) -> Iterator[ReviewPicture]:
    with open_shard(path) as file:
        columns = [name for name in file.schema_arrow.names if name in (*COLUMNS, *LICENCES)]
        for group in range(file.num_row_groups):
            for number, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
                yield ReviewPicture(row, (path, group, number))


def _rows(path: Path) -> list[dict[str, Any]]:
    columns = ["url", "caption", "similarity", "reason", "detail", "source"]
    rows: list[dict[str, Any]] = redacted(read_shard(path, columns).to_pylist())
    return [row | {"host": host_of(row["url"]) if row["url"] else ""} for row in rows]


def read_candidates_of(folder: Path, prompts: Sequence[str], count: int, min_similarity: float | None) -> ReviewSet:
    """The candidates of an index, before anything of them is fetched; raises as a search does."""
    index = open_index(folder)
    candidates = find_candidates(index, prompts, count, CandidateSettings(min_similarity=min_similarity))
    pictures = []
    for number, candidate in enumerate(candidates.candidates[:count]):
        names = ("caption", "similarity", "url", "width", "height", "source", "query", "licence", "attribution")
        facts = {name: getattr(candidate, name) for name in names}
        pictures.append(ReviewPicture({"key": f"{number:06d}", **facts}))
    threshold = index.default_threshold if min_similarity is None else min_similarity
    return ReviewSet(folder, prompts, threshold, pictures)
