"""Phase two of import: one shard of all bucket files into its captions and image rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.captions.bucket_files import ShardReader, bucket_schema
from cdkit.captions.row_query import VALUE_CHARACTERS
from cdkit.core.errors import writing
from cdkit.core.shards import finished_facts, part_name, schema, shard_metadata, write_shard
from cdkit.core.storage import atomic_path

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

# Rows sorted in memory at a time; a shard of one caption repeated without end has more. Part of the output's bytes.
WINDOW_ROWS = 1 << 18
ROW_GROUP_ROWS = 1 << 16
_ENCODED_AS_DICTIONARY = ["nsfw", "licence", "attribution", "source"]


@dataclass(frozen=True)
class DeduplicationJob:
    """What every shard of phase two needs to know. groups: how many rejects shards phase one wrote."""

    out: Path
    fingerprint: str
    groups: int
    buckets: tuple[Path, ...] = ()

    def captions_path(self, shard: int) -> Path:
        return self.out / "captions" / part_name(shard)

    def image_rows_path(self, shard: int) -> Path:
        return self.out / "image_rows" / part_name(shard)

    def finished(self, shard: int) -> dict[str, Any] | None:
        """The facts of a finished shard."""
        if finished_facts(self.image_rows_path(shard), self.fingerprint) is None:
            return None
        return finished_facts(self.captions_path(shard), self.fingerprint)


@dataclass(frozen=True)
class ShardOrder:
    """Row numbers of a shard: kept ones by (caption_id, file, row), and those of an id's second caption.

    is_first, bool, as long as kept: whether a caption begins there; rows_per_caption: one count per caption.
    """

    kept: np.ndarray
    collided: np.ndarray
    is_first: np.ndarray
    rows_per_caption: np.ndarray


def deduplicate_shard(shard: int, job: DeduplicationJob) -> dict[str, Any]:
    """Write one shard; returns its facts: captions, rows, and rows rejected as id_collision by source file."""
    with writing(job.out):
        reader = ShardReader(job.buckets, shard)
        order = shard_order(reader)
        collided = _reject_collided(reader, order, job, shard)
        facts = {"captions": len(order.rows_per_caption), "rows": len(order.kept), "id_collision": collided}
        metadata = shard_metadata(job.fingerprint, facts)
        # The captions shard is renamed last: it is what marks the shard as done.
        with (
            _writer(job.captions_path(shard), schema("captions"), metadata) as captions,
            _writer(job.image_rows_path(shard), schema("image_rows"), metadata) as image_rows,
        ):
            _write_windows(reader, order, captions, image_rows)
    return facts


def shard_order(reader: ShardReader) -> ShardOrder:
    """The order of a shard's rows, from its key columns alone."""
    import numpy as np

    names = ("caption_id", "check", "file", "row")
    parts: list[tuple[np.ndarray, ...]] = [
        tuple(batch.column(name).to_numpy() for name in names) for batch in reader.batches(names)
    ]
    if not parts:
        empty = np.zeros(0, np.int64)
        return ShardOrder(empty, empty, empty.astype(bool), empty)
    ids, checks, files, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((rows, files, ids))
    sorted_ids, sorted_checks = ids[order], checks[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = sorted_ids[1:] != sorted_ids[:-1]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(order)))
    same = sorted_checks == np.repeat(sorted_checks[starts], sizes)
    counts = np.add.reduceat(same.astype(np.int64), starts) if len(starts) else sizes
    return ShardOrder(order[same], order[~same], is_first[same], counts)


def _write_windows(reader: ShardReader, order: ShardOrder, captions: Any, image_rows: Any) -> None:
    import numpy as np
    import pyarrow as pa

    labels = pa.array([reader.labels[number] for number in sorted(reader.labels)], pa.string())
    numbers = np.array(sorted(reader.labels), np.int64)
    columns = [name for name in bucket_schema().names if name not in ("check", "row")]
    written = 0
    for start in range(0, len(order.kept), WINDOW_ROWS):
        window = order.kept[start : start + WINDOW_ROWS]
        rows, places = reader.rows(window, columns)
        table = rows.drop_columns(["caption"]).take(pa.array(places))
        source = labels.take(pa.array(np.searchsorted(numbers, table["file"].to_numpy())))
        table = table.append_column("source", source).select(schema("image_rows").names)
        image_rows.write_table(table, row_group_size=ROW_GROUP_ROWS)
        begins = np.flatnonzero(order.is_first[start : start + WINDOW_ROWS])
        counts = order.rows_per_caption[written : written + len(begins)]
        written += len(begins)
        firsts = rows.select(["caption_id", "caption"]).take(pa.array(places[begins]))
        table = firsts.append_column("rows", pa.array(counts.astype(np.int32)))
        captions.write_table(table, row_group_size=ROW_GROUP_ROWS)


def _reject_collided(reader: ShardReader, order: ShardOrder, job: DeduplicationJob, shard: int) -> dict[str, int]:
    """Write the rows whose caption differs from the first with the same id; returns how many per source file."""
    import pyarrow as pa
    import pyarrow.compute as pc

    path = job.out / "rejects" / part_name(job.groups + shard)
    if not len(order.collided):
        return {}
    rows = reader.rows(order.collided)[0].sort_by([("file", "ascending"), ("row", "ascending")])
    table = pa.table(
        {
            "source": pa.array([reader.labels[number] for number in rows["file"].to_pylist()]),
            "row": rows["row"],
            "reason": pa.array(["id_collision"] * rows.num_rows),
            "value": pc.utf8_slice_codeunits(rows["caption"], 0, VALUE_CHARACTERS),
        }
    ).cast(schema("import_rejects"))
    write_shard(path, table, fingerprint=job.fingerprint)
    return dict(sorted(Counter(str(number) for number in rows["file"].to_pylist()).items()))


@contextmanager
def _writer(path: Path, kind: pa.Schema, metadata: dict[str, str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary, kind.with_metadata(metadata), compression="zstd", use_dictionary=_ENCODED_AS_DICTIONARY
        ) as writer,
    ):
        yield writer
