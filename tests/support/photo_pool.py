"""Pools of real and hostile pictures: an index over their captions, and a server that shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cdkit.core.manifest import Counts, Manifest
from cdkit.core.protocols import Context, TextEncoder
from cdkit.core.shards import part_name, parts, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_caption
from cdkit.engines.local import LocalEngine
from cdkit.index.embedding import describe_encoder
from cdkit.index.layout import IndexSettings
from cdkit.index.stage import index_embeddings
from tests.support import material
from tests.support.hostile_server import HostileServer
from tests.support.small_index import write_embedded


@dataclass(frozen=True)
class PoolPicture:
    """One row of a pool: what its caption says and where its picture is."""

    caption: str
    url: str | None
    md5: str | None = None


def index_of(folder: Path, rows: Sequence[PoolPicture], encoder: TextEncoder) -> Path:
    """A finished caption index over these rows."""
    captions = list({clean_caption(row.caption): row.caption for row in rows}.values())
    write_embedded(folder, captions, encoder, shards=1)
    by_caption: dict[int, list[PoolPicture]] = {}
    for row in rows:
        by_caption.setdefault(caption_id(clean_caption(row.caption)), []).append(row)
    ids = pq.read_table(parts(folder / "captions")[0])["caption_id"].to_pylist()
    records = [
        {"caption_id": number, "url": row.url, "md5": row.md5, "source": "pool.parquet"}
        for number in ids
        for row in by_caption[number]
    ]
    table = pa.Table.from_pylist(records, schema=schema("image_rows"))
    write_shard(folder / "image_rows" / part_name(0), table, fingerprint="image_rows")
    details = index_embeddings(Folder(folder), encoder, IndexSettings(), Context(LocalEngine(1)))
    details = {"captions": len(captions), "rows": len(rows), "encoder": describe_encoder(encoder), **details}
    Folder(folder).remove(["embeddings"])
    counts = Counts(len(rows), len(rows)).as_json()
    Manifest("index", 1, f"built of {len(rows)}", {}, {}, counts=counts, details=details).write(folder)
    return folder


def picture(seed: int, kind: str = "JPEG", size: tuple[int, int] = (200, 160)) -> bytes:
    """A picture that looks like no other seed's: large random blots."""
    blots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC).save(target, format=kind)
    return target.getvalue()


@dataclass(frozen=True)
class Photo:
    """One of the real photos."""

    path: Path
    category: str
    captions: tuple[str, ...]
    dreambooth: bool


def real_photos() -> list[Photo]:
    """All 1,704 real photos with their captions: people's for COCO, class names for the others."""
    rows = pq.read_table(material.path("images/metadata.parquet")).to_pylist()
    found = []
    for row in rows:
        coco = row["path"].startswith("images/coco_open/")
        captions = row["captions"] if coco else [f"a photo of a {row['cls'].replace('_', ' ').lower()}"]
        path = material.path(row["path"])
        found.append(Photo(path, row["cls"] or "", tuple(captions), "/dreambooth/" in row["path"]))
    return found


def served(server: HostileServer, photos: Sequence[Photo]) -> list[PoolPicture]:
    """Put photos on a server; one row for each of their captions."""
    rows = []
    for number, photo in enumerate(photos):
        server.files[f"/file/{number}.jpg"] = photo.path.read_bytes()
        rows += [PoolPicture(caption, server.url(f"file/{number}.jpg")) for caption in photo.captions]
    return rows
