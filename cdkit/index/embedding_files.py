"""Files of embeddings: Parquet for every reader, laid out so that single rows can be read through a memory map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.shards import open_shard, shard_metadata
from cdkit.core.storage import atomic_path
from cdkit.index.records import REBUILD, KeyedTable, RowGroup, embedding_matrix

if TYPE_CHECKING:
    import numpy as np

ROW_GROUP_ROWS = 1 << 12
# In the metadata of files whose row groups hold one uncompressed plain page per column, rows sorted by caption_id.
LAYOUT_KEY, LAYOUT = "cdkit.layout", "sorted, one plain page per row group"
# Larger than any row group can be: a page is never cut.
PAGE_BYTES = 1 << 30
AGAIN = "Delete it; run the same command again."


class EmbeddingWriter:
    """Writes one shard of embeddings: caption_id int64, embedding float16 [dimension]."""

    def __init__(self, path: Path, dimension: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._schema = pa.schema([("caption_id", pa.int64()), ("embedding", pa.list_(pa.float16(), dimension))])
        # Neither compression nor a dictionary makes normalised float16 smaller, and a map can read plain values.
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["caption_id"],
            data_page_size=PAGE_BYTES,
        )
        self._sorted = True

    def write(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Append rows: int64 [n] and any float [n, dimension]."""
        import pyarrow as pa

        dimension = self._schema.field("embedding").type.list_size
        for start in range(0, len(ids), ROW_GROUP_ROWS):
            rows = slice(start, start + ROW_GROUP_ROWS)
            self._sorted &= bool((ids[rows][1:] >= ids[rows][:-1]).all())
            values = pa.array(vectors[rows].astype("float16", copy=False).reshape(-1), pa.float16())
            column = pa.FixedSizeListArray.from_arrays(values, dimension)
            self._writer.write_table(pa.table([pa.array(ids[rows], pa.int64()), column], schema=self._schema))

    def finish(self, metadata: Mapping[str, str]) -> None:
        layout = {LAYOUT_KEY: LAYOUT} if self._sorted else {}
        self._writer.add_key_value_metadata({**metadata, **layout})

    def close(self) -> None:
        self._writer.close()


@contextmanager
def embedding_shard(
    path: Path, dimension: int, *, fingerprint: str, facts: Mapping[str, Any]
) -> Iterator[EmbeddingWriter]:
    """Write a shard atomically and mark it as done; `facts` may still grow inside the block."""
    with atomic_path(path) as temporary:
        writer = EmbeddingWriter(temporary, dimension)
        try:
            yield writer
            writer.finish(shard_metadata(fingerprint, facts))
        finally:
            writer.close()


def join_shards(paths: Sequence[Path], target: Path, *, fingerprint: str, facts: Mapping[str, Any]) -> None:
    """Write the rows of several shards, in their order, as one."""
    with ExitStack() as stack:
        files = [stack.enter_context(open_shard(path, "embeddings", hint=AGAIN)) for path in paths]
        dimension = files[0].schema_arrow.field("embedding").type.list_size
        with embedding_shard(target, dimension, fingerprint=fingerprint, facts=facts) as writer:
            for batch in (batch for file in files for batch in file.iter_batches(8 * ROW_GROUP_ROWS)):
                writer.write(
                    batch["caption_id"].to_numpy(), batch["embedding"].flatten().to_numpy().reshape(-1, dimension)
                )


@dataclass(frozen=True)
class Place:
    """Where one row group's values lie in its file: rows, byte offsets of ids and vectors, and the dimension."""

    rows: int
    ids_at: int
    vectors_at: int
    dimension: int


@dataclass(frozen=True)
class StoredEmbeddings:
    """Embeddings of an index folder by caption id. Safe to use from several threads."""

    folder: Path

    @cached_property
    def table(self) -> KeyedTable:
        return KeyedTable(self.folder)

    @property
    def any(self) -> bool:
        """Whether any are kept."""
        return bool(self.table.groups)

    @cached_property
    def _places(self) -> dict[tuple[Path, int], Place]:
        places: dict[tuple[Path, int], Place] = {}
        for path in {group.path for group in self.table.groups}:
            places.update({(path, number): place for number, place in enumerate(_places(path))})
        return places

    @cached_property
    def _maps(self) -> dict[Path, np.ndarray]:
        import numpy as np

        return {path: np.memmap(path, dtype=np.uint8, mode="r") for path, _ in self._places}

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids found (int64 [n]) and their embeddings (float32 [n, dimension]).

        Raises InputError when a shard is damaged.
        """
        import numpy as np

        found_ids, found = [np.empty(0, dtype=np.int64)], []
        for group, wanted in self.table.touched(ids):
            place = self._places.get((group.path, group.number))
            if place is None:
                rows = self.table.read(group, wanted, ["caption_id", "embedding"])
                group_ids, vectors = rows["caption_id"].to_numpy(), embedding_matrix(rows["embedding"])
            else:
                group_ids, vectors = self._mapped(group, place, wanted)
            found_ids.append(group_ids)
            found.append(vectors)
        if not found:
            return found_ids[0], np.empty((0, 0), dtype=np.float32)
        return np.concatenate(found_ids), np.concatenate(found).astype(np.float32)

    def _mapped(self, group: RowGroup, place: Place, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        raw = self._maps[group.path]
        ids = np.frombuffer(raw, dtype="<i8", count=place.rows, offset=place.ids_at)
        values = np.frombuffer(raw, dtype="<f2", count=place.rows * place.dimension, offset=place.vectors_at)
        positions = np.searchsorted(ids, wanted).clip(max=place.rows - 1)
        present = ids[positions] == wanted
        vectors = values.reshape(place.rows, place.dimension)[positions[present]]
        # All that is stored has norm 1: what has not was not written here, or has been damaged since.
        if len(vectors) and not np.allclose(np.square(vectors, dtype=np.float32).sum(axis=1), 1, atol=0.02):
            raise InputError(f"{group.path} is damaged.", hint=REBUILD)
        return wanted[present], vectors


def _places(path: Path) -> list[Place]:
    """Where the values of a file's row groups lie; none when it was not laid out for a map.

    A Parquet data page is its header, the levels, then the values (Apache Parquet format, "Data Pages"): of a column
    chunk that is one uncompressed page, plain values without nulls are the end.
    """
    with open_shard(path, "embeddings", hint=REBUILD) as file:
        metadata, kind = file.metadata, file.schema_arrow
    if (metadata.metadata or {}).get(LAYOUT_KEY.encode()) != LAYOUT.encode():
        return []
    dimension = kind.field("embedding").type.list_size
    found = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        ends = [_end(group.column(0)), _end(group.column(1))]
        rows = group.num_rows
        place = Place(rows, ends[0] - 8 * rows, ends[1] - 2 * dimension * rows, dimension)
        if min(place.ids_at, place.vectors_at) < 0 or max(ends) > path.stat().st_size:
            raise InputError(f"{path} is damaged: its values lie outside of it.", hint=REBUILD)
        found.append(place)
    return found


def _end(chunk: Any) -> int:
    return int(chunk.data_page_offset + chunk.total_compressed_size)
