"""Finding from Python: build and search a caption index, and retrieve a regularization set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdkit.api.places import Place, list_of, optional_photos, optional_text, text_of, texts_of
from cdkit.api.progress import ProgressCallback
from cdkit.api.results import FoundCaptions, IndexFolder, SetFolder
from cdkit.api.running import config_of, make
from cdkit.core.config import StageConfig
from cdkit.fetching.job import MAX_THREADS
from cdkit.index.config import IndexConfig
from cdkit.index.layout import CODE_BYTES, EXACT_BELOW, RECALL_TARGET
from cdkit.index.search import ENCODE_LIMIT, LIMIT
from cdkit.inputs import local_copy
from cdkit.pictures.picture import NEAR
from cdkit.retrieval.config import RetrieveConfig

if TYPE_CHECKING:
    from cdkit.api.places import Photos

NsfwLimit = Literal["unlikely", "unsure", "nsfw"]


class _Query(StageConfig):
    """The arguments of a search, of the types that they must have."""

    text: str
    threshold: float | None = None
    limit: int = LIMIT
    encode_limit: int = ENCODE_LIMIT
    encoder: str | None = None


def build_index(
    captions: Place | Iterable[Place],
    *,
    out: Place | None = None,
    encoder: str = "embedded",
    pool: str | None = None,
    caption_column: str | None = None,
    url_column: str | None = None,
    pool_licence: str | None = None,
    keep_unrated: bool = False,
    nsfw_limit: NsfwLimit = "unlikely",
    max_punsafe: float = 0.45,
    min_side: int | None = None,
    max_aspect_ratio: float | None = None,
    bytes_per_caption: int = CODE_BYTES,
    exact_below: int = EXACT_BELOW,
    keep_embeddings: bool = False,
    recall_target: float = RECALL_TARGET,
    seed: int = 0,
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto",
    device: str | None = None,
    memory_gib: float | None = None,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> IndexFolder:
    """Build a caption index from tables of captions: paths, folders, globs, addresses, or `embedded`.

    The other arguments are the options of `cdkit index build`.
    """
    config = config_of(IndexConfig, locals() | {"captions": texts_of(captions)})
    return make(IndexFolder, "index", config, out=out, force=force, progress=progress)


def search(
    index: Place,
    text: str,
    *,
    threshold: float | None = None,
    limit: int = LIMIT,
    encode_limit: int = ENCODE_LIMIT,
    encoder: str | None = None,
) -> FoundCaptions:
    """The captions of an index that are at least `threshold` similar to a text (None: the encoder's own), best first.

    limit: captions at most; encode_limit: captions to encode again at most.
    """
    from cdkit.index import search as searching

    folder = Path(local_copy("index", text_of(index)))
    given = config_of(_Query, locals())
    found = searching.search(
        folder,
        [given.text],
        min_similarity=given.threshold,
        limit=given.limit,
        encode_limit=given.encode_limit,
        encoder=given.encoder,
    )
    return FoundCaptions(found[0])


def retrieve(
    index: Place,
    prompts: str | Iterable[str] = (),
    *,
    out: Place | None = None,
    count: int = 200,
    min_similarity: float | None = None,
    select: Literal["top", "spread"] = "top",
    match: Photos | None = None,
    images: Place | None = None,
    per_caption: int = 1,
    per_host: int | None = None,
    exclude_like: Place | Iterable[Place] = (),
    blocklist: Place | None = None,
    decisions: Place | Iterable[Place] = (),
    min_side: int = 128,
    max_aspect_ratio: float = 3.0,
    max_side: int = 1024,
    near_duplicate_bits: int = NEAR,
    nsfw_limit: NsfwLimit = "nsfw",
    max_punsafe: float | None = None,
    max_pwatermark: float | None = None,
    licence: str | Iterable[str] = (),
    min_pool_similarity: float | None = None,
    max_captions: int | None = None,
    image_encoder: str | None = None,
    image_text_min: float | None = None,
    semantic_duplicates: float | None = None,
    reject_like: str | Iterable[str] = (),
    require_like: str | Iterable[str] = (),
    like_margin: float = 0.02,
    nsfw_pictures: bool | None = None,
    min_sharpness: float | None = None,
    max_flat: float | None = None,
    max_text: float | None = None,
    also_write: str | Iterable[str] = (),
    photos: Photos | None = None,
    instance_word: str = "ohwx",
    class_word: str | None = None,
    fill: Literal["generated"] | None = None,
    base: Place | None = None,
    precision: Literal["no", "bf16", "fp16"] = "no",
    device: str | None = None,
    deadline: float = 15.0,
    retries: int = 1,
    max_bytes: int = 16 << 20,
    respect_robots: bool = False,
    allow_host: str | Iterable[str] = (),
    proxy: str | None = None,
    downloads: int = MAX_THREADS,
    seed: int = 0,
    engine: Literal["local", "ray"] = "local",
    workers: int | None = None,
    threads: int | None = None,
    force: bool = False,
    progress: ProgressCallback | bool | None = None,
) -> SetFolder:
    """Find, download and curate images whose captions are like the prompts: a regularization set.

    Fewer than `count` are no error: the result's state is then partial. The other arguments are the options of
    `cdkit retrieve`; photos may be pictures in memory.
    """
    plain: dict[str, Any] = {
        "index": text_of(index),
        "prompts": list_of(prompts),
        "match": optional_photos(match),
        "images": optional_text(images),
        "exclude_like": texts_of(exclude_like),
        "blocklist": optional_text(blocklist),
        "decisions": texts_of(decisions),
        "photos": optional_photos(photos),
        "base": optional_text(base),
    }
    texts = {"licence": licence, "reject_like": reject_like, "require_like": require_like}
    texts |= {"also_write": also_write, "allow_host": allow_host}
    config = config_of(RetrieveConfig, locals() | plain | {name: list_of(given) for name, given in texts.items()})
    return make(SetFolder, "retrieve", config, out=out, force=force, progress=progress)
