"""One pool of pictures, one index over it and one service, for all tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from cdkit.embedded.pool import PoolServer
from cdkit.encoders import load_text_encoder
from tests.support.served import Running, pool_index, serving


@pytest.fixture(scope="package")
def pictures() -> Iterator[PoolServer]:
    with PoolServer() as server:
        yield server


@pytest.fixture(scope="package")
def index_folder(tmp_path_factory: pytest.TempPathFactory, pictures: PoolServer) -> Path:
    encoder = load_text_encoder("embedded", precision="fp32")
    return pool_index(tmp_path_factory.mktemp("served") / "scenes", pictures.host, encoder)


@pytest.fixture(scope="package")
def service(index_folder: Path) -> Iterator[Running]:
    with serving(index_folder) as running:
        yield running
