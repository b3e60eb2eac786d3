"""Rejects of one group of source files, written as they come."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.datasets import schema, shard_metadata
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

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
