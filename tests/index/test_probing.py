"""What is counted for all queries at once is what searches find one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cdkit.core.shards import parts
from cdkit.index.caption_index import INDEX_NAME
from cdkit.index.faiss_index import OpenIndex, id_selector, open_faiss
from cdkit.index.probing import Probing
from cdkit.index.records import read_embeddings


@pytest.fixture(scope="module")
def vectors(compressed_folder: Path) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(read_embeddings(parts(compressed_folder / "embeddings")))
    return np.concatenate([ids for ids, _ in blocks]), np.concatenate([vectors for _, vectors in blocks])


@pytest.fixture(params=["compressed", "exact"])
def index(request: pytest.FixtureRequest, compressed_folder: Path, exact_folder: Path) -> OpenIndex:
    exact = request.param == "exact"
    return open_faiss((exact_folder if exact else compressed_folder) / INDEX_NAME, exact=exact, nprobe=1)


def test_counts_and_levels_are_those_of_single_searches(
    index: OpenIndex, vectors: tuple[np.ndarray, np.ndarray]
) -> None:
    ids, embeddings = vectors
    queries, left_out = embeddings[::500][:12], np.sort(ids[:40])
    probing = Probing(index, queries, left_out, excluded=True)
    selector = id_selector(left_out, excluded=True)
    floors = np.linspace(0.5, 0.9, len(queries)).astype(np.float32)
    counts = probing.candidates(floors - np.float32(0.2)).counts(floors)
    for level, probes in enumerate(probing.probes):
        stops = probing.stops(counts, level)
        best = probing.best(20, level)
        for number, query in enumerate(queries):
            found = index.within(query, float(floors[number]), selector=selector, nprobe=probes)
            assert counts[stops[number], number] == pytest.approx(len(found.ids), abs=1)
            asked = np.full(len(found.ids), number)
            estimates, levels = probing.estimates(asked, found.ids)
            np.testing.assert_allclose(estimates, found.similarities, atol=1e-5)
            assert (levels <= stops[number]).all()
            top = index.top(query, 20, selector=selector, nprobe=probes)
            assert best[number] == pytest.approx(top.similarities[-1], abs=1e-6)


def test_entries_that_are_left_out_have_no_estimate(index: OpenIndex, vectors: tuple[np.ndarray, np.ndarray]) -> None:
    ids, embeddings = vectors
    kept = np.sort(ids[100:200])
    probing = Probing(index, embeddings[:2], kept, excluded=False)
    estimates, _ = probing.estimates(np.array([0, 1, 1]), np.array([ids[0], ids[150], -5]))
    assert not np.isfinite(estimates[[0, 2]]).any()
    assert len(probing.candidates(np.full(2, -2, np.float32)).queries) <= 2 * len(kept)
