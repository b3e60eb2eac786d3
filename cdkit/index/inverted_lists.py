"""Inverted lists on disk: code shards sorted by list, merged into one FAISS file in bounded memory."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from cdkit.core.errors import InputError
from cdkit.core.storage import atomic_path
from cdkit.index.faiss_index import inverted_file, read_faiss

if TYPE_CHECKING:
    import numpy as np

FINGERPRINT_KEY = "cdkit.fingerprint"
ENTRIES_PER_BLOCK = 1 << 20


class ListSource(Protocol):
    """Entries of inverted lists, addressed by ranges of lists."""

    def sizes(self) -> np.ndarray:
        """int64 [lists]: entries per list."""

    def block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [n] and codes uint8 [n, code bytes] of lists first..last−1, list by list."""


@dataclass(frozen=True)
class CodeShard:
    """One shard's codes in a safetensors file."""

    path: Path

    def sizes(self) -> np.ndarray:
        import numpy as np

        return np.diff(self._read("offsets", slice(None)))

    def block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        offsets = self._read("offsets", slice(first, last + 1))
        rows = slice(int(offsets[0]), int(offsets[-1]))
        return self._read("ids", rows), self._read("codes", rows)

    def _read(self, name: str, rows: slice) -> np.ndarray:
        from safetensors import safe_open

        try:
            with safe_open(self.path, framework="numpy") as handle:
                return handle.get_slice(name)[rows]  # type: ignore[no-any-return]
        except Exception as error:
            raise InputError(f"{self.path} is damaged: {error}", hint="Delete it and run the same command.") from error


@dataclass(frozen=True)
class IndexLists:
    """The lists of an index that is already open, without the ids in `dropped` (sorted int64)."""

    index: Any
    dropped: np.ndarray

    def sizes(self) -> np.ndarray:
        import numpy as np

        lists = inverted_file(self.index).invlists
        sizes = [int(self._keep(self._ids(lists, number)).sum()) for number in range(lists.nlist)]
        return np.array(sizes, dtype=np.int64)

    def block(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss
        import numpy as np

        lists = inverted_file(self.index).invlists
        ids, codes = [np.empty(0, dtype=np.int64)], [np.empty((0, lists.code_size), dtype=np.uint8)]
        for number in range(first, last):
            entries = self._ids(lists, number)
            if len(entries):
                raw = faiss.rev_swig_ptr(lists.get_codes(number), len(entries) * lists.code_size)
                keep = self._keep(entries)
                ids.append(entries[keep])
                codes.append(raw.reshape(len(entries), lists.code_size)[keep])
        return np.concatenate(ids), np.concatenate(codes)

    def _ids(self, lists: Any, number: int) -> np.ndarray:
        import faiss
        import numpy as np

        size = lists.list_size(number)
        if not size:
            return np.empty(0, dtype=np.int64)
        # A copy, because ids in a mapped file need not be aligned.
        return np.array(faiss.rev_swig_ptr(lists.get_ids(number), size), dtype=np.int64)

    def _keep(self, ids: np.ndarray) -> np.ndarray:
        import numpy as np

        return ~np.isin(ids, self.dropped) if len(self.dropped) else np.ones(len(ids), dtype=bool)


def write_code_shard(
    path: Path, lists: np.ndarray, ids: np.ndarray, codes: np.ndarray, *, list_count: int, fingerprint: str
) -> None:
    """Write one shard's codes, sorted by list and then id, atomically and marked as done."""
    import numpy as np
    from safetensors.numpy import save_file

    order = np.lexsort((ids, lists))
    offsets = np.zeros(list_count + 1, dtype=np.int64)
    np.cumsum(np.bincount(lists, minlength=list_count), out=offsets[1:])
    tensors = {"offsets": offsets, "ids": ids[order], "codes": np.ascontiguousarray(codes[order])}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={FINGERPRINT_KEY: fingerprint})


def code_shard_done(path: Path, fingerprint: str) -> bool:
    """Whether the shard at `path` was finished under `fingerprint`."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return False
    try:
        with safe_open(path, framework="numpy") as handle:
            return bool((handle.metadata() or {}).get(FINGERPRINT_KEY) == fingerprint)
    except (OSError, SafetensorError):
        return False


def write_inverted_index(path: Path, trained: Any, sources: Sequence[ListSource]) -> int:
    """Write `trained` with the entries of all sources as one memory-mappable FAISS file; returns the entries.

    FAISS itself can only write lists that are in memory, or a second file beside the index; its format for lists in
    memory ("ilar": sizes, then per list codes and ids) can be streamed, and maps as it stands. `trained` is emptied.
    """
    import numpy as np

    sizes = np.stack([source.sizes() for source in sources])
    totals = sizes.sum(axis=0)
    count = int(totals.sum())
    with atomic_path(path) as temporary:
        _write_header(temporary, trained, count)
        with open(temporary, "ab") as handle:
            lists = inverted_file(trained).invlists
            handle.write(b"ilar" + struct.pack("<QQ", len(totals), lists.code_size) + b"full")
            handle.write(struct.pack("<Q", len(totals)) + totals.astype("<u8").tobytes())
            for first, last in blocks_of_lists(totals, ENTRIES_PER_BLOCK):
                _write_lists(handle, sources, sizes, first, last)
    return count


def _write_header(path: Path, trained: Any, count: int) -> None:
    """Everything FAISS writes before the lists: they are the last section of an OPQ + IVF file."""
    import faiss

    _empty(trained)
    ivf = inverted_file(trained)
    trained.ntotal = ivf.ntotal = count
    faiss.write_index(trained, str(path))
    trained.ntotal = ivf.ntotal = 0
    tail = b"ilar" + struct.pack("<QQ", ivf.nlist, ivf.code_size) + b"sprs" + struct.pack("<Q", 0)
    size = path.stat().st_size
    with open(path, "rb+") as handle:
        handle.seek(size - len(tail))
        if handle.read() != tail:
            raise AssertionError("this FAISS release writes inverted lists in another format")
        handle.truncate(size - len(tail))
        os.fsync(handle.fileno())


def _empty(index: Any) -> None:
    import faiss

    ivf = inverted_file(index)
    nothing: Any = faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    ivf.replace_invlists(nothing, True)
    nothing.this.disown()
    index.ntotal = ivf.ntotal = 0


def empty_copy(path: Path) -> Any:
    """The trained tables of an index file, without an entry."""
    import faiss

    index = read_faiss(path, exact=False, flags=faiss.IO_FLAG_MMAP)
    _empty(index)
    return index


def blocks_of_lists(totals: np.ndarray, entries: int) -> Iterator[tuple[int, int]]:
    """Ranges of lists with about `entries` entries each."""
    first = filled = 0
    for number, size in enumerate(totals.tolist()):
        if filled and filled + size > entries:
            yield first, number
            first, filled = number, 0
        filled += size
    yield first, len(totals)


def _write_lists(handle: BinaryIO, sources: Sequence[ListSource], sizes: np.ndarray, first: int, last: int) -> None:
    import numpy as np

    parts = [source.block(first, last) for source in sources]
    numbers = np.concatenate([np.repeat(np.arange(last - first), row[first:last]) for row in sizes])
    order = np.argsort(numbers, kind="stable")
    ids = np.concatenate([part[0] for part in parts])[order]
    codes = np.concatenate([part[1] for part in parts])[order]
    end = 0
    for size in sizes[:, first:last].sum(axis=0).tolist():
        start, end = end, end + size
        handle.write(codes[start:end].tobytes())
        handle.write(ids[start:end].astype("<i8").tobytes())
