"""A regularization set on disk: images with their captions and where they came from, read by training and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.core.manifest import STARTED_NAME, read_manifest
from cdkit.core.shards import part_name, parts, read_shard, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.pictures.folder import START, picture_format

if TYPE_CHECKING:
    pass

IMAGES = "images"
# Where a set that was published without its pictures has its rows.
PUBLISHED_CAPTIONS = "captions"
SHARD_IMAGES = 500
# The stages that make one: of images found, and of images drawn.
MAKERS = ("retrieve", "class-images")
# The source of images that a base model drew: nobody wrote their captions, so that no similarity is meant by them.
GENERATED = "generated"
# What Hugging Face's datasets library reads from a Parquet file to know that a column holds pictures.
_FEATURES = {"image": {"_type": "Image"}}
_HUGGING_FACE_KEY = "huggingface"
_AGAIN = "Run cdkit retrieve for this folder again, with --force."


@dataclass(frozen=True)
class RegularizationImage:
    """One image of a set. image: a PNG or JPEG file; similarity: of its caption to the prompt; url: None if unknown.

    source: the pool file (or key) it came from, or `generated`.
    """

    key: str
    image: bytes
    caption: str
    similarity: float
    url: str | None
    source: str | None


def iterate_regularization_set(folder: Path) -> Iterator[RegularizationImage]:
    """The images of a finished set in their order, one shard in memory at a time.

    Raises InputError when there is none, or it is damaged.
    """
    for path in set_shards(Path(folder)):
        table = read_shard(path, ["key", "image", "caption", "similarity", "url", "source"], hint=_AGAIN)
        for row in table.to_pylist():
            content = (row["image"] or {}).get("bytes")
            if not content or row["caption"] is None:
                raise InputError(f"{path}: {row['key']} has no image or no caption.", hint=_AGAIN)
            yield RegularizationImage(
                row["key"], content, row["caption"], float(row["similarity"]), row["url"], row["source"]
            )


def set_shards(folder: Path) -> list[Path]:
    """The files of a finished set's images; raises InputError when there is no finished set."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist.", hint="Give the folder that cdkit retrieve made.")
    refuse_unfinished(folder)
    refuse_without_pictures(folder)
    manifest, shards = read_manifest(folder), parts(folder / IMAGES)
    # A set that was passed on may have come without its manifest.
    if manifest.stage not in MAKERS if manifest is not None else not shards:
        raise InputError(
            f"{folder} holds no finished regularization set.", hint="Make one with cdkit retrieve, or class-images."
        )
    if not shards:
        raise InputError(f"{folder / IMAGES} holds no shards.", hint=_AGAIN)
    return shards


def refuse_unfinished(folder: Path) -> None:
    """Raise InputError for the folder of a stage that has not ended: what lies there is no result yet."""
    if read_manifest(folder) is None and (folder / STARTED_NAME).exists():
        raise InputError(
            f"{folder} is not finished: its stage was interrupted.", hint="Run the same command again to finish it."
        )


def refuse_without_pictures(folder: Path) -> None:
    """Raise InputError for a set that was published without its pictures."""
    if parts(folder / PUBLISHED_CAPTIONS) and not parts(folder / IMAGES) and read_manifest(folder) is None:
        raise InputError(
            f"{folder} is a set that was published without its pictures: captions, addresses and hashes alone.",
            hint="Retrieve a set of your own (cdkit retrieve), or fetch the pictures with img2dataset from the `url` "
            f"and `caption` of {PUBLISHED_CAPTIONS}/*.parquet.",
        )


@dataclass(frozen=True)
class SetRow:
    """One accepted image about to be written.

    path: its stored file, encoded already; nsfw, punsafe: how safe its pool says it is; licence, attribution: in the
    pool's words.
    """

    key: str
    path: Path
    caption: str
    similarity: float
    url: str | None
    width: int
    height: int
    sha256: str
    phash: str
    source: str | None
    query: str
    nsfw: str | None = None
    punsafe: float | None = None
    licence: str | None = None
    attribution: str | None = None

    @property
    def file_name(self) -> str:
        """What the image is called in every layout: `000012.jpg`."""
        return f"{self.key}{self.path.suffix}"


NOT_STATED = "not stated"


def stated_licences(licences: Iterable[str | None]) -> list[tuple[str, int]]:
    """Licences in their pools' words with how many images have each, the most frequent first."""
    counted = Counter(licence or NOT_STATED for licence in licences)
    return sorted(counted.items(), key=lambda item: (-item[1], item[0]))


def stored_rows(folder: Path, store: Path) -> Iterator[SetRow]:
    """The rows of a finished set, each image as a file in `store`; raises InputError when it is damaged."""
    store.mkdir(parents=True, exist_ok=True)
    facts = [name for name in schema("regularization_images").names if name not in ("key", "image", "caption")]
    for path in set_shards(folder):
        table = read_shard(path, hint=_AGAIN)
        for row in table.to_pylist():
            content, caption = (row["image"] or {}).get("bytes"), row["caption"]
            if not content or caption is None:
                raise InputError(f"{path}: {row['key']} has no image or no caption.", hint=_AGAIN)
            file = store / f"{row['key']}.{'png' if picture_format(content[:START]) == 'PNG' else 'jpg'}"
            file.write_bytes(content)
            yield SetRow(row["key"], file, caption, **{name: row.get(name) for name in facts})


def write_images(out: Folder, rows: Iterable[SetRow], fingerprint: str) -> None:
    """Write images/ in shards; an empty set is one empty shard, so that readers find its columns."""
    import pyarrow as pa

    fields = schema("regularization_images")
    # Hugging Face's name of Arrow's `float`; the other types are called alike.
    types = {field.name: str(field.type).replace("float", "float32") for field in fields}
    features = {name: _FEATURES.get(name) or {"dtype": kind, "_type": "Value"} for name, kind in types.items()}
    metadata = {_HUGGING_FACE_KEY: json_text({"info": {"features": features}})}
    folder = out.sub(IMAGES)
    for number, block in enumerate(_blocks(iter(rows))):
        table = pa.Table.from_pylist([_record(row) for row in block], schema=fields.with_metadata(metadata))
        write_shard(folder / part_name(number), table, fingerprint=fingerprint)


def _blocks(rows: Iterator[SetRow]) -> Iterator[list[SetRow]]:
    yield list(islice(rows, SHARD_IMAGES))
    while block := list(islice(rows, SHARD_IMAGES)):
        yield block


def _record(row: SetRow) -> dict[str, Any]:
    facts = {name: getattr(row, name) for name in schema("regularization_images").names if name != "image"}
    return facts | {"image": {"bytes": row.path.read_bytes(), "path": row.file_name}}
