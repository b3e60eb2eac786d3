"""Many clients at once: no error, and an answer for every request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.bench import bench_serve


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_32_clients_for_30_seconds_on_200_000_captions(tmp_path: Path) -> None:
    found = bench_serve.measure(tmp_path / "index", captions=200_000, clients=32, seconds=30)
    assert found["errors"] == 0
    assert found["requests"] > 100
    assert found["p99_ms"] < 30_000


def test_a_few_clients_for_two_seconds(index_folder: Path) -> None:
    with bench_serve.served(index_folder) as url:
        found = asyncio.run(bench_serve.load(url, 8, 2))
    assert found["errors"] == 0
    assert found["requests"] > 16
