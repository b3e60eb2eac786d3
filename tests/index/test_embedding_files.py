"""Embeddings on disk: Parquet for everyone, and single rows through a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cdkit.core.errors import InputError
from cdkit.core.shards import finished_facts, part_name
from cdkit.index import embedding_files
from cdkit.index.embedding_files import StoredEmbeddings, embedding_shard
from cdkit.index.records import KeyedTable, embedding_matrix

DIMENSION = 96


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def unit_vectors(random: np.random.Generator, count: int) -> np.ndarray:
    made = random.standard_normal((count, DIMENSION))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)  # type: ignore[no-any-return]


def write(path: Path, ids: np.ndarray, vectors: np.ndarray) -> None:
    with embedding_shard(path, vectors.shape[1], fingerprint=path.stem, facts={"n": len(ids)}) as writer:
        writer.write(ids, vectors)


def two_shards(folder: Path, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shards of several row groups each, with overlapping ranges of ids as after an addition."""
    ids = random.permutation(np.unique(random.integers(0, 2**62, 21_000)))
    vectors = unit_vectors(random, len(ids))
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), [12_000])):
        order = rows[np.argsort(ids[rows])]
        write(folder / part_name(number), ids[order], vectors[order])
    return ids, vectors


def test_rows_are_found_through_the_map_as_parquet_holds_them(tmp_path: Path, random: np.random.Generator) -> None:
    ids, vectors = two_shards(tmp_path, random)
    stored = StoredEmbeddings(tmp_path)
    asked = np.concatenate([random.choice(ids, 900, replace=False), ids[:1], [3, 2**62 + 1]])
    found_ids, found = stored.find(asked)
    assert sorted(found_ids.tolist()) == sorted(set(asked.tolist()) & set(ids.tolist()))
    assert len(stored._places) == len(KeyedTable(tmp_path).groups) == 6
    known = dict(zip(ids.tolist(), vectors, strict=True))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.stack([known[number] for number in found_ids.tolist()]).astype(np.float32))
    tables = [pq.read_table(tmp_path / part_name(number)) for number in range(2)]
    for table in tables:
        expected = np.stack([known[number] for number in table["caption_id"].to_pylist()])
        assert np.array_equal(embedding_matrix(table["embedding"]), expected)
    assert finished_facts(tmp_path / part_name(1), "part-00001") == {"n": len(ids) - 12_000}


def test_unsorted_rows_are_read_the_slow_way(tmp_path: Path, random: np.random.Generator) -> None:
    ids, vectors = random.permutation(5_000).astype(np.int64), unit_vectors(random, 5_000)
    write(tmp_path / part_name(0), ids, vectors)
    stored = StoredEmbeddings(tmp_path)
    found_ids, found = stored.find(np.array([17, 4_000, 9_999]))
    assert not stored._places
    order = {number: row for row, number in enumerate(ids.tolist())}
    assert sorted(found_ids.tolist()) == [17, 4_000]
    assert np.array_equal(found, vectors[[order[number] for number in found_ids.tolist()]].astype(np.float32))


def test_nothing_stored_and_nothing_asked(tmp_path: Path, random: np.random.Generator) -> None:
    assert len(StoredEmbeddings(tmp_path / "none").find(np.array([1, 2]))[0]) == 0
    two_shards(tmp_path, random)
    assert len(StoredEmbeddings(tmp_path).find(np.empty(0, dtype=np.int64))[0]) == 0


def test_damaged_values_are_an_error_not_an_answer(tmp_path: Path, random: np.random.Generator) -> None:
    two_shards(tmp_path, random)
    path = tmp_path / part_name(0)
    place = StoredEmbeddings(tmp_path)._places[path, 0]
    content = bytearray(path.read_bytes())
    content[place.vectors_at : place.vectors_at + 2 * DIMENSION] = b"\x00" * (2 * DIMENSION)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"part-00000.parquet is damaged"):
        StoredEmbeddings(tmp_path).find(np.array([pq.read_table(path)["caption_id"][0].as_py()]))


def test_a_failed_shard_is_not_there(tmp_path: Path, random: np.random.Generator) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        embedding_shard(tmp_path / part_name(0), DIMENSION, fingerprint="x", facts={}) as writer,
    ):
        writer.write(np.arange(3), unit_vectors(random, 3))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    assert embedding_files.ROW_GROUP_ROWS < 20_000  # Arrow begins another page after so many rows.
