"""clip-retrieval's protocol: what its clients, its page and the public recipes send, answered from caption indexes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cdkit.core.errors import ConfigError
from cdkit.core.manifest import mistakes
from cdkit.core.text import clean_caption
from cdkit.fetching.urls import MAX_URL
from cdkit.index.caption_index import CaptionIndex
from cdkit.index.search import ENCODE_LIMIT, Match, SearchResult, search, search_vector
from cdkit.retrieval.candidates import DIGITS
from cdkit.serving.catalogue import Catalogue, ServedIndex
from cdkit.serving.query_pictures import QueryPictures
from cdkit.serving.searches import LONGEST_TEXT

if TYPE_CHECKING:
    import numpy as np

# The recipes grow their wish to 15,000 before they give up.
MOST_RESULTS = 16_384
MOST_IDS = 10_000
# Of an embedding; no encoder has more.
MOST_NUMBERS = 1 << 16
# What the client library asks for when it is told nothing.
USUAL_RESULTS = 40
# Settings of another kind of index: they are taken, change nothing, and are named in the reply's headers.
WITHOUT_EFFECT = ("aesthetic_score", "use_mclip", "use_violence_detector")
QUERIES = ("text", "image", "image_url", "embedding_input")


class _Body(BaseModel):
    """A JSON body in which null and "" both mean that nothing is said."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_said(cls, value: Any) -> Any:
        return None if value == "" else value


Body = TypeVar("Body", bound=_Body)


class KnnRequest(_Body):
    """The body of `POST /knn-service`."""

    text: str | None = Field(None, max_length=LONGEST_TEXT)
    image: str | None = None
    image_url: str | None = Field(None, max_length=MAX_URL)
    embedding_input: list[float] | None = Field(None, max_length=MOST_NUMBERS)
    modality: Literal["image", "text"] | None = None
    num_images: int | None = Field(None, ge=0)
    num_result_ids: int | None = Field(None, ge=0)
    indice_name: str | None = None
    deduplicate: bool | None = None
    aesthetic_score: float | None = None
    use_mclip: bool | None = None
    use_violence_detector: bool | None = None

    @property
    def by_picture(self) -> bool:
        """Whether a picture has to be decoded, or even fetched, before anything is found."""
        return not self.text and bool(self.image or self.image_url)

    @property
    def shown(self) -> int:
        """Results that come with what is known of them."""
        return min(USUAL_RESULTS if self.num_images is None else self.num_images, MOST_RESULTS)

    @property
    def wanted(self) -> int:
        """Results in all; those beyond `shown` have an id and a similarity only."""
        return self.shown if self.num_result_ids is None else min(self.num_result_ids, MOST_RESULTS)

    def ignored(self) -> list[str]:
        return [name for name in WITHOUT_EFFECT if getattr(self, name)]


class MetadataRequest(_Body):
    """The body of `POST /metadata`; the page sends large ids as texts."""

    ids: list[int] = Field(max_length=MOST_IDS)
    indice_name: str | None = None


@dataclass(frozen=True)
class Reply:
    """What is sent back; headers say what the request was taken to mean."""

    content: list[dict[str, Any]]
    headers: dict[str, str] = field(default_factory=dict)


def parse_knn(body: Any) -> KnnRequest:
    """Raises ConfigError that names what is wrong, also when the request asks for nothing."""
    request = _parse(KnnRequest, body)
    asked = [name for name in QUERIES if getattr(request, name)]
    if not asked or (asked == ["text"] and not clean_caption(request.text or "")):
        raise ConfigError(f"The request must have one of {', '.join(QUERIES)}.")
    return request


def parse_metadata(body: Any) -> MetadataRequest:
    """A request for rows by their ids; raises ConfigError that names what is wrong."""
    return _parse(MetadataRequest, body)


def _parse(model: type[Body], body: Any) -> Body:
    if not isinstance(body, dict):
        raise ConfigError("The body must be a JSON object.")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise ConfigError("; ".join(mistakes(error))) from error


def answer_knn(request: KnnRequest, catalogue: Catalogue, pictures: QueryPictures) -> Reply:
    """The most similar captions' images, best first; several queries in one request: the text counts, as there.

    There is no least similarity in this protocol. Raises ConfigError for a query that this index cannot answer.
    """
    name, served = catalogue.named(request.indice_name)
    vector = None if request.text else _query_vector(request, served, pictures)
    content = served.ask(lambda index: _results(index, served, request, vector)) if request.wanted else []
    meaning = f"index {name}; modality {request.modality or 'image'} by captions; similarity text to caption"
    if vector is not None and request.embedding_input is None:
        meaning = meaning.replace("text to", "image to")
    headers = {"X-Cdkit-Answer": quote(meaning, safe="/;, ()")}
    if request.ignored():
        headers["X-Cdkit-Ignored"] = ", ".join(request.ignored())
    return Reply(content, headers)


def _query_vector(request: KnnRequest, served: ServedIndex, pictures: QueryPictures) -> np.ndarray:
    import numpy as np

    if request.image:
        return pictures.embed_base64(request.image, served.encoder)
    if request.image_url:
        return pictures.embed_url(request.image_url, served.encoder)
    return np.array(request.embedding_input, dtype=np.float32)


def _results(
    index: CaptionIndex, served: ServedIndex, request: KnnRequest, vector: np.ndarray | None
) -> list[dict[str, Any]]:
    """As many entries as are wanted: what must not be shown is left out, and further captions are looked at."""
    limit = request.wanted
    while True:
        result = _search(index, request.text, vector, limit)
        entries = list(_entries(result.results, served, request))
        if len(entries) >= request.wanted or not result.more or limit >= MOST_RESULTS:
            break
        limit = min(2 * limit, MOST_RESULTS)
    entries = entries[: request.wanted]
    for entry in entries[request.shown :]:
        for key in entry.keys() - {"id", "similarity"}:
            del entry[key]
    return entries


def _search(index: CaptionIndex, text: str | None, vector: np.ndarray | None, limit: int) -> SearchResult:
    encode_limit = max(ENCODE_LIMIT, 2 * limit)
    if vector is not None:
        return search_vector(index, vector, min_similarity=-1.0, limit=limit, encode_limit=encode_limit)
    return search(index, [text or ""], min_similarity=-1.0, limit=limit, encode_limit=encode_limit)[0]


def _entries(matches: list[Match], served: ServedIndex, request: KnnRequest) -> Iterator[dict[str, Any]]:
    """One entry per caption, or per image row without deduplication; of images at one URL the best caption's."""
    seen: set[str] = set()
    for match in matches:
        visible = served.visible(match)
        if visible is None:
            continue
        rows: list[dict[str, Any]] = [row for row in visible.rows if _on_the_web(row) and row["url"] not in seen]
        if request.modality == "text":
            rows = rows[:1] or [{}]
        elif request.deduplicate is not False:
            rows = rows[:1]
        for row in rows:
            seen.add(row.get("url") or "")
            yield _entry(match.caption_id, match.caption, row) | {"similarity": round(match.similarity, DIGITS)}


def _on_the_web(row: Mapping[str, Any]) -> bool:
    """Whether a row's URL may be a link on a page: clients ask whatever comes, and `javascript:` is a program."""
    return str(row.get("url") or "").lower().startswith(("http://", "https://"))


def _entry(caption_id: int, caption: str, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("width", "height", "md5", "source")
    facts = {name: row[name] for name in names if row.get(name) is not None}
    if _on_the_web(row):
        facts = {"url": row["url"], **facts}
    rating = {"NSFW": row["nsfw"]} if row.get("nsfw") else {}
    return {**facts, **rating, "caption": caption, "id": caption_id}


def answer_metadata(request: MetadataRequest, catalogue: Catalogue) -> Reply:
    """What is known of captions by their ids, in the order asked; ids that are unknown or not shown are left out."""
    import numpy as np

    name, served = catalogue.named(request.indice_name)
    # What is no caption's id, such as the -1 of an empty result, is just unknown.
    ids = np.array([number for number in request.ids if 0 <= number < 1 << 63], dtype=np.int64)

    def look_up(index: CaptionIndex) -> list[dict[str, Any]]:
        captions, rows = index.records.captions(ids), index.records.image_rows(ids)
        content = []
        for number in ids.tolist():
            match = Match(number, captions.get(number, ""), 0.0, rows.get(number, []))
            visible = served.visible(match) if number in captions else None
            if visible is not None:
                entry = _entry(number, visible.caption, next(iter(visible.rows), {}))
                content.append({"id": number, "metadata": entry})
        return content

    return Reply(served.ask(look_up), {"X-Cdkit-Answer": quote(f"index {name}")})
