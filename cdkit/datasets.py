"""Dataset kinds (schemas of the folders cdkit writes), and Parquet shards that know whether they are done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.json_text import json_text
from cdkit.manifest import Counts
from cdkit.storage import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

FINGERPRINT_KEY = "cdkit.fingerprint"
FACTS_KEY = "cdkit.facts"


@dataclass(frozen=True)
class Dataset:
    """What a stage produced: its folder, the row counts, facts for the manifest, and why it is short if it is.

    dropped: stages it extends whose own result it did not keep. clocks: what this run took, for the manifest's `run`;
    it leaves out what an interrupted run had done.
    """

    kind: str
    folder: Path
    counts: Counts = field(default_factory=Counts)
    details: dict[str, Any] = field(default_factory=dict)
    shortfall: str = ""
    dropped: tuple[str, ...] = ()
    clocks: dict[str, float] = field(default_factory=dict)


@cache
def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a dataset kind; KeyError for a kind that has none."""
    import pyarrow as pa

    schemas = {
        "captions": [("caption_id", pa.int64()), ("caption", pa.string()), ("rows", pa.int32())],
        "image_rows": [
            ("caption_id", pa.int64()),
            ("url", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("nsfw", pa.string()),
            ("pool_similarity", pa.float32()),
            ("punsafe", pa.float32()),
            ("pwatermark", pa.float32()),
            ("md5", pa.string()),
            ("source", pa.string()),
        ],
        "import_rejects": [
            ("source", pa.string()),
            ("row", pa.int64()),
            ("reason", pa.string()),
            ("value", pa.string()),
        ],
        "candidates": [
            ("query", pa.string()),
            ("caption_id", pa.int64()),
            ("caption", pa.string()),
            ("similarity", pa.float32()),
            ("url", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("md5", pa.string()),
            ("source", pa.string()),
        ],
        "regularization_images": [
            ("key", pa.string()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("caption", pa.string()),
            ("similarity", pa.float32()),
            ("url", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("sha256", pa.string()),
            ("phash", pa.string()),
            ("source", pa.string()),
            ("query", pa.string()),
        ],
        "retrieval_rejects": [
            ("url", pa.string()),
            ("caption_id", pa.int64()),
            ("caption", pa.string()),
            ("similarity", pa.float32()),
            ("reason", pa.string()),
            ("status", pa.int32()),
            ("detail", pa.string()),
            ("sha256", pa.string()),
            ("source", pa.string()),
        ],
        "token_counts": [("token_id", pa.int32()), ("token", pa.string()), ("count", pa.int64())],
    }
    return pa.schema(schemas[kind])


def part_name(index: int) -> str:
    """`part-00000.parquet` for shard 0."""
    return f"part-{index:05d}.parquet"


def parts(folder: Path) -> list[Path]:
    """The finished shards of a dataset folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def write_shard(path: Path, table: pa.Table, *, fingerprint: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write one zstd Parquet shard atomically, carrying its fingerprint and `facts` in the file metadata."""
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), **shard_metadata(fingerprint, facts or {})}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def shard_metadata(fingerprint: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """The key–value metadata that marks a shard as done."""
    return {FINGERPRINT_KEY: fingerprint, FACTS_KEY: json_text(facts, sort_keys=True)}


def finished_facts(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The facts of a shard made under `fingerprint`; None when it is missing, damaged or from something else.

    Without a fingerprint nothing counts as done.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    if not fingerprint or metadata.get(FINGERPRINT_KEY.encode(), b"").decode() != fingerprint:
        return None
    facts = json.loads(metadata.get(FACTS_KEY.encode(), b"{}"))
    return facts if isinstance(facts, dict) else None


def read_parts(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Each shard of a dataset folder as a table; raises InputError when there is none or one is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = parts(folder)
    if not paths:
        raise InputError(f"{folder} holds no shards.", hint="Run the stage that makes it first.")
    for path in paths:
        try:
            yield pq.read_table(path, columns=list(columns) if columns else None)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{path} is damaged: {error}", hint="Delete it and run the stage again.") from error


def merge_counts(tallies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several reason → count tables, zero entries dropped."""
    total: dict[str, int] = {}
    for tally in tallies:
        for reason, number in tally.items():
            total[reason] = total.get(reason, 0) + number
    return {reason: number for reason, number in sorted(total.items()) if number}
