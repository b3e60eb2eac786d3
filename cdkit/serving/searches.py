"""Our own search over HTTP: the JSON of `cdkit index search` page by page, tables as a stream, and similarities."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import command_line
from cdkit.core.manifest import mistakes
from cdkit.core.shards import schema
from cdkit.core.text import clean_caption
from cdkit.index.caption_index import CaptionIndex
from cdkit.index.search import ENCODE_LIMIT, LIMIT, SearchResult, encode_queries, nearest_similarities, search
from cdkit.retrieval.candidates import DIGITS
from cdkit.serving.catalogue import Catalogue, ServedIndex

if TYPE_CHECKING:
    import pyarrow as pa

MOST_RESULTS = 10_000
# Similarities that a page gets to draw and to count.
MOST_SIMILARITIES = 4096
SIMILARITY_DIGITS = 4
# Rows of one piece of a table that is sent.
BLOCK_ROWS = 500
MARK_LENGTH = 16
# Characters of a query: encoders see some hundred, cleaning sees all.
LONGEST_TEXT = 10_000


class SearchQuery(BaseModel):
    """The query of `GET /search`. cursor: as an answer gave it; format: csv and parquet have a row per image."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    q: str = Field(min_length=1, max_length=LONGEST_TEXT)
    min_similarity: float | None = Field(None, ge=-1, le=1)
    limit: int = Field(LIMIT, ge=1, le=MOST_RESULTS)
    index: str | None = None
    cursor: str | None = Field(None, max_length=64)
    format: Literal["json", "csv", "parquet"] = "json"

    @field_validator("q")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not clean_caption(value):
            raise ValueError("is empty")
        return value

    def first(self, mark: str) -> int:
        """How many results came before, by the cursor; raises ConfigError for one of another state of the index."""
        if not self.cursor:
            return 0
        number, _, cursor_mark = self.cursor.partition(".")
        if cursor_mark != mark or not number.isdecimal() or int(number) > MOST_RESULTS:
            hint = "Search again without a cursor."
            raise ConfigError("The index has changed since this cursor was given, or it is none.", hint=hint)
        return int(number)


def parse_query(values: Mapping[str, str]) -> SearchQuery:
    """Raises ConfigError that names what is wrong."""
    try:
        return SearchQuery.model_validate({name: value for name, value in values.items() if value != ""})
    except ValidationError as error:
        raise ConfigError(
            "; ".join(mistakes(error)), hint="For example: /search?q=a+photo+of+a+dog&limit=20"
        ) from error


@dataclass(frozen=True)
class SearchPage:
    """One page of results: the JSON of the command, under which index it was found, and where the next page starts."""

    result: SearchResult
    index: str
    cursor: str | None

    def as_json(self) -> dict[str, Any]:
        return {**self.result.as_json(), "index": self.index, "cursor": self.cursor}


def answer_search(query: SearchQuery, catalogue: Catalogue) -> SearchPage:
    """The results after the cursor, at most `limit`; what must not be shown is left out."""
    name, served = catalogue.named(query.index)

    def find(index: CaptionIndex) -> SearchPage:
        mark = index.manifest.fingerprint[:MARK_LENGTH]
        start = query.first(mark)
        end = min(start + query.limit, MOST_RESULTS)
        encode_limit = max(ENCODE_LIMIT, 2 * end)
        result = search(index, [query.q], min_similarity=query.min_similarity, limit=end, encode_limit=encode_limit)[0]
        shown = [match for each in result.results[start:] if (match := served.visible(each)) is not None]
        cursor = f"{end}.{mark}" if result.more and end < MOST_RESULTS else None
        return SearchPage(replace(result, results=shown), name, cursor)

    return served.ask(find)


def table_rows(page: SearchPage) -> Iterator[dict[str, Any]]:
    """The results as rows of candidates: one per image, one for a caption that has none."""
    for match in page.result.results:
        facts = {
            "query": page.result.query,
            "caption_id": match.caption_id,
            "caption": match.caption,
            "similarity": round(match.similarity, DIGITS),
        }
        for row in match.rows or [{}]:
            yield {**facts, **{name: row.get(name) for name in ("url", "width", "height", "md5", "source")}}


def csv_stream(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """A CSV file, some rows at a time."""
    text = io.StringIO()
    writer = csv.DictWriter(text, schema("candidates").names)
    writer.writeheader()
    for number, row in enumerate(rows, start=1):
        writer.writerow(row)
        if number % BLOCK_ROWS == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def parquet_stream(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """A Parquet file, a row group at a time."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema("candidates"), compression="zstd") as writer:
        for table in _tables(rows):
            writer.write_table(table)
            yield sink.getvalue()
            # The writer only ever appends: the footer says where each part is in the whole.
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _tables(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.Table]:
    import pyarrow as pa

    block: list[Mapping[str, Any]] = []
    for row in rows:
        block.append(row)
        if len(block) == BLOCK_ROWS:
            yield pa.Table.from_pylist(block, schema=schema("candidates"))
            block = []
    if block:
        yield pa.Table.from_pylist(block, schema=schema("candidates"))


def answer_similarities(query: SearchQuery, catalogue: Catalogue) -> dict[str, Any]:
    """The greatest similarities, best first, which a page counts and draws; complete: whether these are all captions.

    estimated: they are the index's estimates, off by up to `margin`.
    """
    name, served = catalogue.named(query.index)

    def look(index: CaptionIndex) -> dict[str, Any]:
        vector = encode_queries(index.encoder, [query.q])[0]
        similarities = nearest_similarities(index, vector, MOST_SIMILARITIES)
        estimated = not (index.faiss.layout_exact or index.embeddings.any)
        return {
            "index": name,
            "similarities": [round(value, SIMILARITY_DIGITS) for value in similarities.tolist()],
            "complete": len(similarities) < MOST_SIMILARITIES,
            "estimated": estimated,
            "margin": round(index.margin, SIMILARITY_DIGITS) if estimated else 0.0,
            "threshold": index.default_threshold,
        }

    return served.ask(look)


def retrieve_command(query: SearchQuery, served: ServedIndex) -> str:
    """The command that makes a regularization set of what this search finds."""
    words = "".join(letter if letter.isalnum() else "-" for letter in query.q.lower()).strip("-")
    least = [] if query.min_similarity is None else ["--min-similarity", f"{query.min_similarity:g}"]
    out = f"sets/{'-'.join(filter(None, words.split('-')))[:40] or 'set'}"
    return command_line("cdkit", "retrieve", served.folder, query.q, *least, "--out", out)
