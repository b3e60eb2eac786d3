"""The index benchmark, at a size at which an index would be exact if nobody asked for codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cdkit.core.shards import part_name
from cdkit.index.embedding_files import embedding_shard
from tests.bench import bench_index

COUNT = 3000


@pytest.mark.parametrize("dimension", [64, 256])
def test_few_vectors_of_few_dimensions_are_coded_too(dimension: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, dimension))[random.integers(40, size=COUNT)]
    vectors += 0.5 * random.standard_normal(vectors.shape)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with embedding_shard(tmp_path / "embeddings" / part_name(0), dimension, fingerprint="few", facts={}) as writer:
        writer.write(np.arange(COUNT), vectors)
    built = bench_index.build(tmp_path, COUNT, 1)
    assert built["lists"] > 0
    assert ("RaBitQ" in built["factory"]) == (dimension == 256)
