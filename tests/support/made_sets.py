"""Regularization sets made in a moment: scenes of the embedded world, written as retrieve writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cdkit.core.manifest import Counts, Manifest
from cdkit.core.shards import part_name, parts, schema, write_shard
from cdkit.core.storage import Folder
from cdkit.embedded.pool import PoolRow, picture_bytes, pool_rows
from cdkit.pictures.picture import BytesContent
from cdkit.pictures.regularization_set import SetRow, write_images
from cdkit.retrieval.inspect import InspectionRules, inspect

PROMPT = "a photo of a star"
REJECTS = [
    ("http_404", "a star that is gone", 0.91),
    ("too_small", "a tiny star", 0.88),
    ("http_404", "no star", None),
]


def scenes(word: str, other: str, count: int) -> list[PoolRow]:
    """Rows of the embedded pool whose captions have a word and not another, each with a picture of its own."""
    rows = {row.seed: row for row in pool_rows(60 * count) if word in row.text and other not in row.text}
    return list(rows.values())[:count]


def made_set(
    folder: Path, count: int = 12, *, captions: Sequence[str] = (), encoder: str | None = "embedded", twins: int = 2
) -> Path:
    """A finished set: `twins` of its pictures are another one at another size; half stars, half balls.

    captions: of the first pictures, in place of their own.
    """
    store = folder.parent / f"{folder.name}-files"
    store.mkdir(parents=True)
    rows = [*scenes("star", "ball", (count - twins + 1) // 2), *scenes("ball", "star", (count - twins) // 2)]
    pictures = [(row, 256) for row in rows] + [(row, 192) for row in rows[:twins]]
    written = []
    for number, (row, size) in enumerate(pictures):
        found = inspect(BytesContent(picture_bytes(row.seed, size, "png")), InspectionRules(), store)
        caption = captions[number] if number < len(captions) else row.text
        url = f"http://host-{number % 3}.test/{row.seed}-{size}.png"
        facts = (found.width, found.height, found.sha256, f"{found.phash:016x}", "pool.parquet", PROMPT)
        path = store / found.name
        written.append(SetRow(f"{number:06d}", path, caption, round(0.99 - number / 100, 6), url, *facts))
    write_images(Folder(folder), written, "made")
    left_out = [
        {"reason": reason, "caption": caption, "similarity": similarity, "url": f"http://host-{place}.test/x.png"}
        for place, (reason, caption, similarity) in enumerate(REJECTS)
    ]
    table = pa.Table.from_pylist(left_out, schema=schema("retrieval_rejects"))
    write_shard(folder / "rejects" / part_name(0), table, fingerprint="made")
    counts = Counts(count + 3, count, {"http_404": 2, "too_small": 1})
    details = {"prompts": [PROMPT], "threshold": 0.87, "encoder": encoder}
    Manifest("retrieve", 2, "made", {}, {}, counts=counts.as_json(), details=details).write(folder)
    return folder


def rated(folder: Path, rating: str | None = "unlikely", *, rows: str = "images", **columns: Sequence[object]) -> Path:
    """A set, or an index, whose rows have these values in further or other columns."""
    for path in parts(folder / rows):
        table = pq.read_table(path)
        for name, values in {"nsfw": [rating] * len(table), **columns}.items():
            if name in table.column_names:
                table = table.drop_columns([name])
            table = table.append_column(name, pa.array(values))
        write_shard(path, table, fingerprint="made")
    return folder
