"""Records of an index by caption id: rows of Parquet shards, read through their statistics, without removed ones."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cdkit.core.shards import kind_of, open_shard, parts, read_parts, require_keys

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


REBUILD = "Build the index again (cdkit index build … --force), or restore the folder from a copy."


@dataclass(frozen=True)
class RowGroup:
    """One Parquet row group and the range of caption ids in it."""

    path: Path
    number: int
    least: int
    most: int


@dataclass
class GroupMemory:
    """Decoded row groups that were read last, for who looks up rows again and again; several threads may use it."""

    most_bytes: int
    _groups: OrderedDict[tuple[Path, int, tuple[str, ...]], pa.Table] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def table(self, group: RowGroup, columns: tuple[str, ...], read: Callable[[], pa.Table]) -> pa.Table:
        """The columns of a row group, read when they are not remembered."""
        key = (group.path, group.number, columns)
        with self._turn:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        table = read()
        with self._turn:
            if key not in self._groups:
                self._groups[key] = table
                self._bytes += table.nbytes
            while self._bytes > self.most_bytes:
                self._bytes -= self._groups.popitem(last=False)[1].nbytes
        return table


@dataclass(frozen=True)
class KeyedTable:
    """A dataset folder whose shards carry caption_id; rows are found through row-group statistics.

    memory: what keeps the row groups that were read, None to read them each time.
    """

    folder: Path
    memory: GroupMemory | None = None

    @cached_property
    def groups(self) -> list[RowGroup]:
        groups = []
        for path in parts(self.folder):
            with open_shard(path, kind_of(self.folder), hint=REBUILD) as file:
                metadata = file.metadata
            column = metadata.schema.names.index("caption_id")
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if not group.num_rows:
                    continue
                statistics = group.column(column).statistics
                bounded = statistics is not None and statistics.has_min_max
                bounds = (statistics.min, statistics.max) if bounded else (-(1 << 63), (1 << 63) - 1)
                groups.append(RowGroup(path, number, *bounds))
        return groups

    @cached_property
    def _bounds(self) -> np.ndarray:
        """int64 [2, groups]: the least and the greatest caption id of each row group."""
        import numpy as np

        bounds = [[group.least for group in self.groups], [group.most for group in self.groups]]
        return np.array(bounds, dtype=np.int64)

    def touched(self, ids: np.ndarray) -> Iterator[tuple[RowGroup, np.ndarray]]:
        """The row groups that may hold some of `ids`, each with those ids, sorted."""
        import numpy as np

        wanted = np.unique(np.asarray(ids, dtype=np.int64))
        first = np.searchsorted(wanted, self._bounds[0])
        last = np.searchsorted(wanted, self._bounds[1], side="right")
        for number in np.flatnonzero(first < last).tolist():
            yield self.groups[number], wanted[first[number] : last[number]]

    def rows(self, ids: np.ndarray, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Tables holding the rows of `ids`, row group by row group."""
        for group, wanted in self.touched(ids):
            table = self.read(group, wanted, columns)
            if len(table):
                yield table

    def read(self, group: RowGroup, ids: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The rows of `ids` in one row group; raises InputError when its file is damaged."""
        import numpy as np
        import pyarrow as pa

        def whole() -> pa.Table:
            with open_shard(group.path, hint=REBUILD) as file:
                table = file.read_row_group(group.number, columns=list(columns))
            return require_keys(table, group.path, hint=REBUILD)

        table = whole() if self.memory is None else self.memory.table(group, tuple(columns), whole)
        return table.filter(pa.array(np.isin(table["caption_id"].to_numpy(), ids)))


def embedding_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed_size_list<float16> column as float16 [n, dimension]."""
    import numpy as np

    size = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty((0, size), dtype=np.float16)


BLOCK_ROWS = 32_768
Block = TypeVar("Block")


def iterate_captions(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Each shard of an index's captions without the removed ones; `columns` must include caption_id if given."""
    yield from _iterate(folder, "captions", columns)


def iterate_image_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Each shard of an index's image rows without the removed ones; `columns` should include caption_id and url."""
    yield from _iterate(folder, "image_rows", columns)


def _iterate(folder: Path, kind: str, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    removed = read_tombstones(folder)
    for table in read_parts(folder / kind, columns):
        yield removed.filter(table)


@dataclass(frozen=True)
class Records:
    """Lookup in one index folder as it stood when the object was made. memory: see KeyedTable."""

    folder: Path
    memory: GroupMemory | None = None

    @cached_property
    def removed(self) -> Tombstones:
        return read_tombstones(self.folder)

    @cached_property
    def _captions(self) -> KeyedTable:
        return KeyedTable(self.folder / "captions", self.memory)

    @cached_property
    def _image_rows(self) -> KeyedTable:
        return KeyedTable(self.folder / "image_rows", self.memory)

    def captions(self, ids: np.ndarray) -> dict[int, str]:
        """Caption text by id; removed or unknown ids are absent."""
        texts: dict[int, str] = {}
        for table in self._captions.rows(ids, ["caption_id", "caption"]):
            kept = self.removed.filter(table)
            texts.update(zip(kept["caption_id"].to_pylist(), kept["caption"].to_pylist(), strict=True))
        return texts

    def image_rows(self, ids: np.ndarray) -> dict[int, list[dict[str, Any]]]:
        """Image rows by caption id, every column but the id."""
        from cdkit.core.shards import schema

        rows: dict[int, list[dict[str, Any]]] = {}
        for table in self._image_rows.rows(ids, schema("image_rows").names):
            for row in self.removed.filter(table).to_pylist():
                rows.setdefault(row.pop("caption_id"), []).append(row)
        return rows


def read_embeddings(
    paths: Sequence[Path], member: Callable[[np.ndarray], np.ndarray] | None = None, *, number: str = "float32"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """ids int64 [n] and embeddings [n, dimension] of all rows, or those `member` picks, block by block."""
    import numpy as np
    import pyarrow as pa

    for path in paths:
        with open_shard(path, "embeddings", hint="Delete it; run the same command again.") as file:
            for batch in file.iter_batches(BLOCK_ROWS, columns=["caption_id", "embedding"]):
                table = require_keys(pa.Table.from_batches([batch]), path)
                ids = table["caption_id"].to_numpy()
                rows = np.ones(len(ids), dtype=bool) if member is None else member(ids)
                if rows.any():
                    yield ids[rows], embedding_matrix(table["embedding"])[rows].astype(number, copy=False)


def read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """`blocks`, the next of which is read in a thread while the caller works on one."""
    with ThreadPoolExecutor(1) as reader:
        waiting = reader.submit(next, blocks, None)
        while (block := waiting.result()) is not None:
            waiting = reader.submit(next, blocks, None)
            yield block


REMOVED_NAME = "removed"


@dataclass(frozen=True)
class Tombstones:
    """Removed captions (sorted int64 ids) and removed URLs."""

    caption_ids: np.ndarray
    urls: frozenset[str]

    @cached_property
    def _url_values(self) -> pa.Array:
        import pyarrow as pa

        return pa.array(sorted(self.urls), pa.string())

    def keep_captions(self, ids: np.ndarray) -> np.ndarray:
        """bool [n]: which ids are not removed."""
        import numpy as np

        return ~np.isin(ids, self.caption_ids)

    def filter(self, table: pa.Table) -> pa.Table:
        """`table` (with a caption_id and perhaps a url column) without what was removed."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if len(self.caption_ids):
            table = table.filter(pa.array(self.keep_captions(table["caption_id"].to_numpy())))
        if self.urls and "url" in table.column_names:
            removed = pc.is_in(table["url"], value_set=self._url_values)
            table = table.filter(pc.invert(removed))
        return table


def read_tombstones(folder: Path) -> Tombstones:
    """Everything removed from the index in `folder` so far."""
    import numpy as np

    ids: list[int] = []
    urls: set[str] = set()
    if parts(folder / REMOVED_NAME):
        for table in read_parts(folder / REMOVED_NAME):
            ids.extend(value for value in table["caption_id"].to_pylist() if value is not None)
            urls.update(value for value in table["url"].to_pylist() if value is not None)
    return Tombstones(np.unique(np.array(ids, dtype=np.int64)), frozenset(urls))


def tombstone_table(caption_ids: Sequence[int], urls: Sequence[str]) -> pa.Table:
    """One row per removed caption and per removed URL."""
    import pyarrow as pa

    columns = {
        "caption_id": pa.array([*caption_ids, *[None] * len(urls)], pa.int64()),
        "url": pa.array([*[None] * len(caption_ids), *urls], pa.string()),
    }
    return pa.table(columns)
