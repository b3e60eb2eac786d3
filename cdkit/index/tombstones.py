"""What was removed from an index: captions and URLs that readers leave out and that no later add brings back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.datasets import parts, read_parts

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

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
