"""A seeded sample of caption rows from an index folder or straight from pools: exact, without replacement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from cdkit.core.config import parse_config
from cdkit.core.errors import InputError
from cdkit.core.fingerprints import GOLDEN, Input, splitmix64
from cdkit.core.manifest import STARTED_NAME, read_manifest
from cdkit.core.protocols import Context
from cdkit.core.shards import parts, read_parts
from cdkit.core.storage import Folder
from cdkit.core.text import clean_caption

_BLOCK = 1 << 20
# Of a caption row: its priority, its caption, and where that stands.
_ROWS = np.dtype([("priority", "u8"), ("id", "i8"), ("shard", "i8"), ("position", "i8")])
IMPORTED = "sample"


@dataclass(frozen=True)
class SampledCaptions:
    """Distinct captions, cleaned (large_string [n]); sampled rows of each (int64 [n]); how many rows there were."""

    captions: pa.Array
    rows: np.ndarray
    available: int

    @property
    def sampled(self) -> int:
        return int(self.rows.sum())


def captions_folder(index: Path) -> Path:
    """The captions of an index folder; raises InputError when it has none or its import is not finished."""
    folder = index / "captions"
    if (index / STARTED_NAME).exists() and read_manifest(index) is None:
        raise InputError(
            f"{index} is not finished: its import was interrupted.", hint="Run the command that makes the index again."
        )
    if not parts(folder):
        raise InputError(f"{index} is not an index: it has no captions.", hint="Make one with cdkit index build.")
    return folder


def import_pools(
    captions: Input, pool: str | None, caption_column: str | None, scratch: Folder, context: Context
) -> Path:
    """Clean, filter and deduplicate pools as `cdkit index import` does, into `scratch`; returns the captions folder.

    The same work on the same rows, so that counts from pools and from an index of them agree. What a killed run left
    is continued.
    """
    from cdkit.captions.config import ImportConfig
    from cdkit.captions.importing import import_captions

    target = scratch.sub(IMPORTED)
    settings = {"captions": list(captions.value), "pool": pool, "caption_column": caption_column}
    import_captions(parse_config(ImportConfig, settings), {"captions": captions}, target, context)
    return target.path / "captions"


def sample_rows(folder: Path, sample: int, seed: int, context: Context) -> SampledCaptions:
    """Draw `sample` caption rows of a captions folder without replacement; all of them when there are fewer.

    A caption of `rows` k is k rows. The rows kept are those with the smallest keyed hash of (caption_id, copy): every
    row is as likely as any other, and the same rows come out however the captions are split into shards.
    Index folders keep a caption as it was written; here it is cleaned. Raises InputError when there is no row at all.
    """
    chosen, available = _smallest(_blocks(folder, seed, context), sample)
    if not available:
        raise InputError(f"{folder} holds no caption rows.", hint="Import a pool with captions first.")
    texts, weights = [], []
    with context.progress.task("reading the sampled captions", len(parts(folder)), unit="shards") as task:
        for number, table in enumerate(read_parts(folder, ["caption"])):
            positions, copies = np.unique(chosen["position"][chosen["shard"] == number], return_counts=True)
            if len(positions):
                written = table.column("caption").take(pa.array(positions)).to_pylist()
                texts.append(pa.array([clean_caption(text) for text in written], pa.large_string()))
                weights.append(copies.astype(np.int64))
            task.advance(1)
    return SampledCaptions(pa.concat_arrays(texts), np.concatenate(weights), available)


def _blocks(folder: Path, seed: int, context: Context) -> Iterator[np.ndarray]:
    """Every caption row of the folder with its priority, a bounded block of _ROWS at a time."""
    with context.progress.task("drawing the sample", len(parts(folder)), unit="shards") as task:
        for number, table in enumerate(read_parts(folder, ["caption_id", "rows"])):
            ids = table.column("caption_id").to_numpy().astype(np.int64)
            ends = np.cumsum(table.column("rows").to_numpy().astype(np.int64))
            total = int(ends[-1]) if len(ends) else 0
            for start in range(0, total, _BLOCK):
                row = np.arange(start, min(start + _BLOCK, total), dtype=np.int64)
                positions = np.searchsorted(ends, row, side="right")
                copies = row - np.where(positions > 0, ends[positions - 1], 0)
                block = np.empty(len(row), _ROWS)
                block["priority"], block["id"] = _hash(ids[positions], copies, seed), ids[positions]
                block["shard"], block["position"] = number, positions
                yield block
            task.advance(1)


def _smallest(blocks: Iterator[np.ndarray], number: int) -> tuple[np.ndarray, int]:
    """The `number` rows of lowest priority, ties by caption_id, and how many rows there were.

    Memory stays a few times `number`.
    """
    waiting, available = [np.empty(0, _ROWS)], 0
    bound = np.uint64(2**64 - 1)
    for block in blocks:
        available += len(block)
        waiting.append(block[block["priority"] <= bound])
        if sum(map(len, waiting[1:])) > max(number, _BLOCK):
            waiting = [_first(waiting, number)]
            bound = waiting[0]["priority"][-1] if len(waiting[0]) == number else bound
    return _first(waiting, number), available


def _first(blocks: list[np.ndarray], number: int) -> np.ndarray:
    rows = np.concatenate(blocks)
    first: np.ndarray = rows[np.lexsort((rows["id"], rows["priority"]))[:number]]
    return first


def _hash(ids: np.ndarray, copies: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [n] keyed hash of caption row (id, copy), the same on every machine."""
    key = splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    return splitmix64(splitmix64(ids.astype(np.uint64) ^ key) + copies.astype(np.uint64) * np.uint64(GOLDEN))
