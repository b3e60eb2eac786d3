from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pytest
import torch

from cdkit.core.shards import part_name, parts, write_shard
from cdkit.index import brute_force as truth_module
from cdkit.index.brute_force import TRAINING, Queries, brute_force, read_sample, sampled
from cdkit.index.faiss_index import OpenIndex
from cdkit.index.recall import measure

DIMENSION, COUNT = 16, 900


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).standard_normal((COUNT, DIMENSION)) + 1
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> list[Path]:
    folder = tmp_path_factory.mktemp("embeddings")
    found = []
    for number, start in enumerate(range(0, COUNT, 300)):
        flat = pa.array(vectors[start : start + 300].astype(np.float16).ravel(), pa.float16())
        column = pa.FixedSizeListArray.from_arrays(flat, DIMENSION)
        table = pa.table({"caption_id": pa.array(np.arange(start, start + 300)), "embedding": column})
        write_shard(folder / part_name(number), table, fingerprint="x")
        found.append(folder / part_name(number))
    return found


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> Queries:
    return Queries(vectors[:20], np.arange(20))


def test_brute_force_leaves_held_out_captions_out(paths: list[Path], vectors: np.ndarray, queries: Queries) -> None:
    truth = brute_force(paths, queries, 0.7, seed=0, sample=10**6, total=COUNT)
    similarities = queries.vectors @ vectors.T
    similarities[:, :20] = -1
    neighbours, best = truth.neighbours.by_query(20), truth.best.by_query(20)
    for number, row in enumerate(similarities):
        assert sorted(neighbours[number].tolist()) == np.flatnonzero(row >= 0.7).tolist()
        assert set(best[number].tolist()) == set(np.argsort(-row)[:200].tolist())
    assert not set(truth.ids.tolist()) & set(range(20))
    assert len(truth.ids) == COUNT - 20


def test_too_many_neighbours_make_the_sample_smaller(
    paths: list[Path], queries: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_module, "MOST_HITS", 2000)
    monkeypatch.setattr(truth_module, "TOP", 50)
    truth = brute_force(paths, queries, -1.0, seed=0, sample=10**6, total=COUNT)
    assert 50 < len(truth.ids) < 400
    assert all(set(ids.tolist()) == set(truth.ids.tolist()) for ids in truth.neighbours.by_query(len(queries.vectors)))


def open_index(vectors: np.ndarray, ids: np.ndarray) -> OpenIndex:
    index = faiss.index_factory(DIMENSION, "IDMap2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.add_with_ids(vectors, ids)
    return OpenIndex(index, True, 1)


def test_recall_of_an_exact_index_is_one(paths: list[Path], vectors: np.ndarray, queries: Queries) -> None:
    found = measure(open_index(vectors, np.arange(COUNT)), paths, queries, threshold=0.7, seed=0)
    assert (found.threshold_recall, found.worst_tenth, found.top_200_recall) == (1.0, 1.0, 1.0)
    assert found.sample == COUNT - 20
    assert found.held_out_captions == 20


def test_recall_counts_what_is_missing(paths: list[Path], vectors: np.ndarray, queries: Queries) -> None:
    kept = np.arange(COUNT)
    kept = kept[(kept < 20) | (kept % 4 != 0)]
    index = open_index(vectors[kept], kept)
    truth = brute_force(paths, queries, 0.7, seed=0, sample=10**6, total=COUNT)
    expected = (truth.neighbours.ids % 4 != 0).mean()
    found = measure(index, paths, queries, threshold=0.7, seed=0)
    assert found.threshold_recall == pytest.approx(expected, abs=1e-5)
    assert found.worst_tenth is not None
    assert found.worst_tenth < expected


def test_queries_without_neighbours_are_counted(paths: list[Path], vectors: np.ndarray, queries: Queries) -> None:
    found = measure(open_index(vectors, np.arange(COUNT)), paths, queries, threshold=0.9999, seed=0)
    assert found.queries_without_neighbours == 20
    assert found.threshold_recall is None
    assert found.top_200_recall == 1.0


def test_samples_depend_on_the_id_and_the_seed_alone() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63 - 1, 100_000)
    chosen = sampled(ids, 0, TRAINING, 10_000, 100_000)
    assert abs(int(chosen.sum()) - 10_000) < 400
    order = np.random.default_rng(1).permutation(len(ids))
    np.testing.assert_array_equal(sampled(ids[order], 0, TRAINING, 10_000, 100_000), chosen[order])
    assert (sampled(ids, 1, TRAINING, 10_000, 100_000) != chosen).sum() > 10_000


def test_a_small_share_is_read_through_maps_as_the_whole_is(compressed_folder: Path) -> None:
    shards = parts(compressed_folder / "embeddings")

    def member(ids: np.ndarray) -> np.ndarray:
        return sampled(ids, 0, TRAINING, 300, 10_000)

    mapped, read = (list(read_sample(shards, member, share)) for share in (0.03, 1.0))
    ids = [np.concatenate([block for _, block, _ in blocks]) for blocks in (mapped, read)]
    assert 200 < len(ids[0]) < 400
    np.testing.assert_array_equal(*ids)
    np.testing.assert_array_equal(*(np.concatenate([rows for _, _, rows in blocks]) for blocks in (mapped, read)))


@pytest.mark.parametrize("count", [0, 1, 1024, 2500])
def test_pairs_above_their_floors_come_by_query_whatever_the_blocks(count: int) -> None:
    random = np.random.default_rng(0)
    queries, vectors = random.standard_normal((7, 16), np.float32), random.standard_normal((count, 16), np.float32)
    floors = np.linspace(-1, 8, 7, dtype=np.float32)
    rows, columns, values = truth_module.pairs_above(torch.from_numpy(queries), vectors, floors)
    products = queries @ vectors.T
    expected = np.nonzero(products >= floors[:, None])
    assert np.array_equal(rows, expected[0])
    assert np.array_equal(columns, expected[1])
    np.testing.assert_allclose(values, products[expected], rtol=1e-5, atol=1e-5)
