"""Streamed index files are what FAISS itself would have written. The tables are random: nothing needs training."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from cdkit.core.errors import InputError
from cdkit.index.faiss_index import encode, id_selector, open_faiss
from cdkit.index.inverted_lists import (
    CodeShard,
    IndexLists,
    code_shard_done,
    empty_copy,
    write_code_shard,
    write_inverted_index,
)
from cdkit.index.rates import TRIAL_LISTS, trial_index

DIMENSION = 16
NOTHING = np.empty(0, dtype=np.int64)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).standard_normal((600, DIMENSION), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)  # type: ignore[no-any-return]


@pytest.fixture
def shards(tmp_path: Path, vectors: np.ndarray) -> list[CodeShard]:
    index = trial_index(DIMENSION)
    found = []
    for number, start in enumerate(range(0, 600, 200)):
        ids = np.arange(start, start + 200) * 3 + 2**62
        path = tmp_path / f"part-{number:05d}.safetensors"
        lists, codes = encode(index, vectors[start : start + 200])
        write_code_shard(path, lists, ids, codes, list_count=TRIAL_LISTS, fingerprint="mine")
        found.append(CodeShard(path))
    return found


def test_a_streamed_index_is_byte_for_byte_what_faiss_writes(
    tmp_path: Path, vectors: np.ndarray, shards: list[CodeShard]
) -> None:
    reference = trial_index(DIMENSION)
    reference.add_with_ids(vectors, np.arange(600) * 3 + 2**62)
    faiss.write_index(reference, str(tmp_path / "faiss.index"))
    count = write_inverted_index(tmp_path / "ours.index", trial_index(DIMENSION), shards)
    assert count == 600
    ours = faiss.read_index(str(tmp_path / "ours.index"))
    faiss.write_index(ours, str(tmp_path / "again.index"))
    # FAISS writes sparse list sizes when few lists are filled; once it has read our file it writes its own bytes.
    assert (tmp_path / "again.index").read_bytes() == (tmp_path / "faiss.index").read_bytes()


def test_a_mapped_index_finds_what_one_in_memory_finds(
    tmp_path: Path, vectors: np.ndarray, shards: list[CodeShard]
) -> None:
    reference = trial_index(DIMENSION)
    reference.add_with_ids(vectors, np.arange(600) * 3 + 2**62)
    write_inverted_index(tmp_path / "ours.index", trial_index(DIMENSION), shards)
    opened = open_faiss(tmp_path / "ours.index", exact=False, nprobe=TRIAL_LISTS)
    faiss.extract_index_ivf(reference).nprobe = TRIAL_LISTS
    similarities, ids = reference.search(vectors[:5], 10)
    for number in range(5):
        found = opened.top(vectors[number], 10)
        np.testing.assert_array_equal(found.ids, ids[number])
        np.testing.assert_allclose(found.similarities, similarities[number], rtol=1e-6)
        without = opened.top(vectors[number], 10, selector=id_selector(ids[number][:3], excluded=True))
        np.testing.assert_array_equal(without.ids[:7], ids[number][3:])


def test_dropping_and_adding_entries_keeps_all_others(
    tmp_path: Path, vectors: np.ndarray, shards: list[CodeShard]
) -> None:
    first = tmp_path / "first.index"
    write_inverted_index(first, trial_index(DIMENSION), shards[:2])
    dropped = np.sort(np.arange(0, 400, 7) * 3 + 2**62)
    lists = IndexLists(faiss.read_index(str(first), faiss.IO_FLAG_MMAP), dropped)
    count = write_inverted_index(tmp_path / "second.index", empty_copy(first), [lists, shards[2]])
    assert count == 600 - len(dropped)
    whole = IndexLists(faiss.read_index(str(tmp_path / "second.index"), faiss.IO_FLAG_MMAP), NOTHING)
    ids, codes = whole.block(0, TRIAL_LISTS)
    assert sorted(ids.tolist()) == sorted(set((np.arange(600) * 3 + 2**62).tolist()) - set(dropped.tolist()))
    assert len(codes) == count


def test_a_code_shard_knows_whether_it_is_done(tmp_path: Path, shards: list[CodeShard]) -> None:
    path = shards[0].path
    assert code_shard_done(path, "mine")
    assert not code_shard_done(path, "other")
    assert not code_shard_done(tmp_path / "absent", "mine")
    path.write_bytes(path.read_bytes()[:50])
    assert not code_shard_done(path, "mine")
    with pytest.raises(InputError, match="damaged"):
        shards[0].sizes()
