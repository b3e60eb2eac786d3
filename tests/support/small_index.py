"""Small caption indexes made without the import and embed stages, from captions and an encoder double."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from cdkit.core.manifest import Counts, Manifest
from cdkit.core.protocols import Context, TextEncoder
from cdkit.core.shards import part_name, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_caption
from cdkit.engines.local import LocalEngine
from cdkit.index.embedding import describe_encoder
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.layout import IndexSettings
from cdkit.index.stage import index_embeddings

SUBJECTS = ["dog", "cat", "horse", "star", "ring", "vase", "boat", "tree", "house", "bird"]
COLOURS = ["red", "green", "blue", "yellow", "black", "white", "pink", "brown", "grey", "orange"]
PLACES = ["grass", "beach", "street", "table", "snow", "kitchen", "forest", "river", "roof", "wall"]
MANNERS = ["small", "large", "old", "shiny", "striped", "dotted", "broken", "wooden", "happy", "sleepy"]
TIMES = ["night", "day", "dawn", "noon", "winter", "summer", "autumn", "spring", "dusk", "morning"]


def grammar_captions(count: int, seed: int = 0) -> list[str]:
    """`count` distinct captions that share words in many ways."""
    random = np.random.default_rng(seed)
    chosen = random.choice(10**5, count, replace=False)
    return [
        f"a {MANNERS[n // 1000 % 10]} {COLOURS[n // 100 % 10]} {SUBJECTS[n // 10 % 10]} "
        f"near the {PLACES[n % 10]} at {TIMES[n // 10000 % 10]}"
        for n in chosen.tolist()
    ]


def write_embedded(folder: Path, captions: list[str], encoder: TextEncoder, *, shards: int = 4) -> None:
    """captions/, image_rows/ (two per caption) and embeddings/ as import and embed would write them."""
    ids = np.array([caption_id(clean_caption(caption)) for caption in captions], dtype=np.int64)
    order = np.argsort(ids)
    bounds = np.linspace(0, 2**63 - 1, shards + 1)
    for number in range(shards):
        rows = [row for row in order.tolist() if bounds[number] <= float(ids[row]) < bounds[number + 1]]
        texts = [captions[row] for row in rows]
        vectors = encoder.encode(texts).astype(np.float16)
        name = part_name(number)
        tables = {
            "captions": pa.table({"caption_id": ids[rows], "caption": texts, "rows": [2] * len(rows)}),
            "image_rows": image_rows(ids[rows].tolist()),
        }
        tables["captions"] = tables["captions"].cast(schema("captions"))
        for kind, table in tables.items():
            write_shard(folder / kind / name, table, fingerprint=f"{kind}-{number}")
        target, mark = folder / "embeddings" / name, f"embeddings-{number}"
        with embedding_shard(target, encoder.dimension, fingerprint=mark, facts={}) as writer:
            writer.write(ids[rows], vectors)


def image_rows(ids: list[int]) -> pa.Table:
    rows = [
        {"caption_id": number, "url": f"http://host/{number}-{copy}.jpg", "width": 640, "source": "made"}
        for number in ids
        for copy in range(2)
    ]
    return pa.Table.from_pylist(rows, schema=schema("image_rows"))


def make_index(
    folder: Path, captions: list[str], encoder: TextEncoder, settings: IndexSettings | None = None, *, shards: int = 4
) -> Path:
    """A finished index folder."""
    settings = settings or IndexSettings()
    write_embedded(folder, captions, encoder, shards=shards)
    details = index_embeddings(Folder(folder), encoder, settings, Context(LocalEngine(1)))
    details = {"captions": len(captions), "rows": 2 * len(captions), "encoder": describe_encoder(encoder), **details}
    if not settings.keep_embeddings:
        Folder(folder).remove(["embeddings"])
    counts = Counts(2 * len(captions), 2 * len(captions)).as_json()
    Manifest("index", 1, "built", {}, {}, counts=counts, details=details).write(folder)
    return folder
