"""Bucket files: the intermediate between the two phases, Arrow IPC files from which one shard can be read alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.formatting import json_text
from cdkit.core.shards import FINGERPRINT_KEY, schema, shard_metadata
from cdkit.core.storage import atomic_path
from cdkit.core.text import ID_BITS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


LABELS_KEY = "cdkit.labels"
SHARDS_KEY = "cdkit.shards"


def bucket_schema() -> pa.Schema:
    """Rows between the phases: `check` tells captions with one id apart, `file` and `row` say where a row was."""
    import pyarrow as pa

    return pa.schema(
        [
            ("caption_id", pa.int64()),
            ("check", pa.int64()),
            ("file", pa.int32()),
            ("row", pa.int64()),
            ("caption", pa.string()),
            ("url", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("nsfw", pa.string()),
            ("pool_similarity", pa.float32()),
            ("punsafe", pa.float32()),
            ("pwatermark", pa.float32()),
            ("md5", pa.string()),
            ("licence", pa.string()),
            ("attribution", pa.string()),
        ]
    )


def shard_of(ids: np.ndarray, shards: int) -> np.ndarray:
    """The shard of each caption id: its highest bits, as uint16. `shards` is a power of two."""
    import numpy as np

    return (ids >> (ID_BITS - (shards.bit_length() - 1))).astype(np.uint16)


class BucketWriter:
    """Collects rows up to a number of bytes, then writes them as one Arrow batch per shard.

    Every flush writes exactly `shards` batches, so that batch n belongs to shard n modulo `shards`. Rows are put in
    the order of their shards as they come, while a processor's cache holds them.
    """

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, shards: int, max_bytes: int) -> None:
        self._writer = writer
        self._shards = shards
        self._max_bytes = max_bytes
        self._waiting: list[tuple[pa.RecordBatch, list[int]]] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch, kept: np.ndarray) -> None:
        """Take rows of bucket_schema(), those that are `kept` (bool [n])."""
        import numpy as np
        import pyarrow as pa

        rows = np.flatnonzero(kept)
        shard = shard_of(batch.column(0).to_numpy()[rows], self._shards)
        ordered = batch.take(pa.array(rows[np.argsort(shard, kind="stable")]))
        ends = np.cumsum(np.bincount(shard, minlength=self._shards)).tolist()
        self._waiting.append((ordered, [0, *ends]))
        self._bytes += ordered.get_total_buffer_size()
        if self._bytes >= self._max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was collected."""
        import pyarrow as pa

        if not self._waiting:
            return
        for shard in range(self._shards):
            pieces = [rows.slice(ends[shard], ends[shard + 1] - ends[shard]) for rows, ends in self._waiting]
            self._writer.write_batch(pa.concat_batches(pieces))
        self._waiting, self._bytes = [], 0


@contextmanager
def bucket_writer(
    path: Path, *, shards: int, fingerprint: str, labels: Mapping[int, str], max_bytes: int
) -> Iterator[BucketWriter]:
    """Write a bucket file atomically; `labels` are the names of the source files by number."""
    import pyarrow as pa

    metadata = {
        FINGERPRINT_KEY: fingerprint,
        SHARDS_KEY: str(shards),
        LABELS_KEY: json_text({str(number): label for number, label in labels.items()}),
    }
    schema = bucket_schema().with_metadata(metadata)
    # Not compressed: LZ4 takes a quarter off and costs as much as sorting does.
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        bucket = BucketWriter(writer, shards, max_bytes)
        yield bucket
        bucket.flush()


def is_finished(path: Path, fingerprint: str) -> bool:
    """Whether a whole bucket file made under `fingerprint` is there."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            metadata: dict[bytes, bytes] = pa.ipc.open_file(source).schema.metadata or {}
    except (OSError, pa.ArrowInvalid):
        return False
    return bool(fingerprint) and metadata.get(FINGERPRINT_KEY.encode(), b"").decode() == fingerprint


@lru_cache(maxsize=256)
def _opened(path: Path, columns: tuple[str, ...]) -> pa.ipc.RecordBatchFileReader:
    """A bucket file, only the named columns decoded; kept open for the shards to come."""
    import pyarrow as pa

    included = [bucket_schema().get_field_index(name) for name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=included) if included else pa.ipc.IpcReadOptions()
    return pa.ipc.open_file(pa.OSFile(str(path)), options=options)


def close_buckets() -> None:
    """Let go of the files, whose space on the disk is theirs until then."""
    _opened.cache_clear()


class ShardReader:
    """The rows of one shard in several bucket files, numbered in the order they lie there."""

    def __init__(self, paths: Sequence[Path], shard: int) -> None:
        self._paths = list(paths)
        self._shard = shard
        self.labels: dict[int, str] = {}
        for path in self._paths:
            metadata: Any = _opened(path, ()).schema.metadata
            self.labels.update(
                {int(number): label for number, label in json.loads(metadata[LABELS_KEY.encode()]).items()}
            )

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Every batch of the shard, only the named columns decoded."""
        for path in self._paths:
            reader = _opened(path, tuple(columns or ()))
            shards = int(reader.schema.metadata[SHARDS_KEY.encode()])
            for number in range(self._shard, reader.num_record_batches, shards):
                yield reader.get_batch(number)

    def rows(self, numbers: np.ndarray, columns: Sequence[str] | None = None) -> tuple[pa.Table, np.ndarray]:
        """The rows with these numbers (each once), only the named columns, as they lie, and where each number's is."""
        import numpy as np
        import pyarrow as pa

        wanted = np.sort(numbers)
        pieces, start = [], 0
        for batch in self.batches(columns):
            low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
            if high - low == batch.num_rows:
                pieces.append(batch)
            elif high > low:
                pieces.append(batch.take(pa.array(wanted[low:high] - start)))
            start += batch.num_rows
        schema = bucket_schema() if columns is None else pa.schema([bucket_schema().field(name) for name in columns])
        rows = pa.Table.from_batches(pieces, schema=schema).combine_chunks()
        return rows, numbers if len(wanted) == start else np.searchsorted(wanted, numbers)


REJECT_GROUP_ROWS = 1 << 17


class RejectsWriter:
    """Rejected rows in row groups of a fixed size, so that the bytes do not depend on how rows arrive."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(self, rows: pa.Table) -> None:
        """Take rows of the import_rejects schema."""
        self._waiting.append(rows)
        self._rows += rows.num_rows
        if self._rows >= REJECT_GROUP_ROWS:
            self._write(self._rows // REJECT_GROUP_ROWS * REJECT_GROUP_ROWS)

    def finish(self) -> None:
        if self._rows:
            self._write(self._rows)

    def _write(self, rows: int) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, rows).combine_chunks(), row_group_size=REJECT_GROUP_ROWS)
        self._waiting, self._rows = [table.slice(rows)], self._rows - rows


@contextmanager
def rejects_writer(path: Path, fingerprint: str, files: list[dict[str, Any]]) -> Iterator[RejectsWriter]:
    """`files` is filled while the rows are written and goes into the shard's facts at the end."""
    import pyarrow.parquet as pq

    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema("import_rejects"), compression="zstd") as writer,
    ):
        rejects = RejectsWriter(writer)
        yield rejects
        rejects.finish()
        writer.add_key_value_metadata(shard_metadata(fingerprint, {"files": files}))
