"""Compaction: rewrite an index's files without what was removed, and with row counts that are up to date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import writing
from cdkit.core.protocols import Progress, SilentProgress
from cdkit.core.shards import FINGERPRINT_KEY, parts, read_shard, shard_metadata
from cdkit.core.storage import Folder, atomic_path
from cdkit.index.caption_index import INDEX_NAME, check_files, check_fits, index_hash, index_manifest
from cdkit.index.changes.transaction import Change, changed_manifest, recall_before
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.faiss_index import id_selector, read_faiss
from cdkit.index.inverted_lists import IndexLists, write_inverted_index
from cdkit.index.records import REBUILD, REMOVED_NAME, KeyedTable, Tombstones, embedding_matrix, read_tombstones

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("captions", "image_rows", "embeddings")
ROW_GROUP_ROWS = 1 << 16


@dataclass(frozen=True)
class Compaction:
    """What a compaction left and dropped."""

    captions: int
    rows: int
    dropped_captions: int
    dropped_rows: int


def compact(folder: Path, *, progress: Progress | None = None) -> Compaction:
    """Rewrite captions, image rows, embeddings and FAISS without removed entries; killed, it happened or did not.

    Tombstones stay, so that no later add brings a removed caption back. Needs free disk for the files it rewrites.
    """
    index_manifest(folder)
    with Folder(folder).lock(), writing(folder):
        change = Change.begin(folder)
        manifest = index_manifest(folder)
        check_files(folder, manifest)
        check_fits(folder, manifest)
        removed = read_tombstones(folder)
        files = {kind: parts(folder / kind) for kind in KINDS}
        dropped = dict.fromkeys(KINDS, 0)
        left = dict.fromkeys(KINDS, 0)
        total = sum(len(paths) for paths in files.values())
        with (progress or SilentProgress()).task("compacting", total, unit="shards") as task:
            for kind, paths in files.items():
                for path in paths:
                    table = read_shard(path, kind=kind, hint=REBUILD)
                    kept = removed.filter(table)
                    if kind == "captions":
                        kept = _with_row_counts(folder, kept, removed)
                    if not kept.equals(table):
                        _write(change.path(f"{kind}/{path.name}"), kept, kind)
                    dropped[kind] += len(table) - len(kept)
                    left[kind] += len(kept)
                    task.advance(1)
        facts, recall = dict(manifest.details["index"]), manifest.details["recall"]
        vectors = rewrite_index(folder / INDEX_NAME, change.path(INDEX_NAME), facts, removed)
        if vectors == facts["vectors"]:
            change.path(INDEX_NAME).unlink()
        else:
            facts.update(stored_index_facts(change.path(INDEX_NAME), vectors))
            recall = recall_before(manifest, "compact")
        what = {"compacted": len(parts(folder / REMOVED_NAME))}
        details = {"index": facts, "recall": recall, "captions": left["captions"], "rows": left["image_rows"]}
        change.commit(changed_manifest(manifest, what, details))
    return Compaction(left["captions"], left["image_rows"], dropped["captions"], dropped["image_rows"])


def stored_index_facts(path: Path, vectors: int) -> dict[str, Any]:
    """What the manifest says about an index file that was rewritten."""
    size = path.stat().st_size
    return {
        "vectors": vectors,
        "bytes": size,
        "bytes_per_caption": round(size / max(1, vectors), 2),
        "sha256": index_hash(path),
    }


def rewrite_index(
    source: Path,
    target: Path,
    facts: dict[str, Any],
    removed: Tombstones,
    add: Callable[[Any], None] | None = None,
    extra: list[Any] | None = None,
) -> int:
    """Copy an index file without removed captions; returns the vectors left.

    add: puts more vectors into an exact index; extra: further list sources of a compressed one.
    """
    import faiss

    if facts["exact"]:
        index = read_faiss(source, exact=True)
        if len(removed.caption_ids):
            index.remove_ids(id_selector(removed.caption_ids))
        if add is not None:
            add(index)
        with atomic_path(target) as temporary:
            faiss.write_index(index, str(temporary))
        return int(index.ntotal)
    lists = IndexLists(read_faiss(source, exact=False, flags=faiss.IO_FLAG_MMAP), removed.caption_ids)
    emptied = read_faiss(source, exact=False, flags=faiss.IO_FLAG_MMAP)
    return write_inverted_index(target, emptied, [lists, *(extra or [])])


def _with_row_counts(folder: Path, captions: pa.Table, removed: Tombstones) -> pa.Table:
    """`captions` with `rows` counted again: removals took rows, additions brought some."""
    import numpy as np
    import pyarrow as pa

    ids = captions["caption_id"].to_numpy()
    order = np.argsort(ids)
    counts = np.zeros(len(ids), dtype=np.int32)
    for table in KeyedTable(folder / "image_rows").rows(ids, ["caption_id", "url"]):
        kept = removed.filter(table)["caption_id"].to_numpy()
        np.add.at(counts, order[np.searchsorted(ids, kept, sorter=order)], 1)
    return captions.set_column(captions.column_names.index("rows"), "rows", pa.array(counts, pa.int32()))


def _write(path: Path, table: pa.Table, kind: str) -> None:
    """Write a changed shard; its fingerprint says that it is no longer what the build made."""
    import pyarrow.parquet as pq

    metadata = dict(table.schema.metadata or {})
    built = metadata.get(FINGERPRINT_KEY.encode(), b"").decode()
    mark = f"{built}-compacted"
    if kind == "embeddings":
        vectors = embedding_matrix(table["embedding"])
        with embedding_shard(path, vectors.shape[1], fingerprint=mark, facts={}) as writer:
            writer.write(table["caption_id"].to_numpy(), vectors)
        return
    table = table.replace_schema_metadata({**metadata, **shard_metadata(mark, {})})
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROW_GROUP_ROWS)
