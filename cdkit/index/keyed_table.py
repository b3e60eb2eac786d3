"""A folder of Parquet shards read by key: which row groups hold an id, and their rows through a memory map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.shards import kind_of, open_shard, parts, require_keys

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


@dataclass(frozen=True)
class KeyedTable:
    """A dataset folder whose shards carry caption_id; rows are found through row-group statistics."""

    folder: Path

    @cached_property
    def groups(self) -> list[RowGroup]:
        found = []
        for path in parts(self.folder):
            with open_shard(path, kind_of(self.folder), hint=REBUILD) as file:
                metadata = file.metadata
            column = metadata.schema.names.index("caption_id")
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if not group.num_rows:
                    continue
                statistics = group.column(column).statistics
                known = statistics is not None and statistics.has_min_max
                bounds = (statistics.min, statistics.max) if known else (-(1 << 63), (1 << 63) - 1)
                found.append(RowGroup(path, number, *bounds))
        return found

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

        with open_shard(group.path, hint=REBUILD) as file:
            table = require_keys(file.read_row_group(group.number, columns=list(columns)), group.path, hint=REBUILD)
        return table.filter(pa.array(np.isin(table["caption_id"].to_numpy(), ids)))


def embedding_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A fixed_size_list<float16> column as float16 [n, dimension]."""
    import numpy as np

    size = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), size) for chunk in column.chunks]
    return np.concatenate(chunks) if chunks else np.empty((0, size), dtype=np.float16)
