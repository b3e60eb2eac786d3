"""The download on a Ray cluster: shards of the same guarded program, collected here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.fetching.job import FetchSettings
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.download import download
from tests.retrieval.conftest import candidates_of
from tests.support.accept_all import AcceptAll, failures_of
from tests.support.hostile_server import Canary, HostileServer, picture

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_ray_fetches_under_the_same_guard(tmp_path: Path) -> None:
    from cdkit.engines.ray import RayEngine

    with HostileServer("0.0.0.0") as server, Canary("127.0.0.9") as canary:
        port = server.server_address[1]
        hosts = [f"127.0.0.{number}:{port}" for number in (2, 3)]
        urls = [f"http://{hosts[number % 2]}/ok/{number}" for number in range(12)]
        urls += [f"http://{hosts[0]}/404", f"http://127.0.0.9:{canary.port}/", "http://127.0.0.9/"]
        settings = FetchSettings(allow_hosts=tuple(hosts))
        limits = Limits(len(urls))
        context = Context(RayEngine(2))
        done = download(
            candidates_of(urls), Folder(tmp_path), context, limits=limits, settings=settings, judge=AcceptAll()
        )
        assert [image.content.read() for _, image in done.accepted] == [
            picture(f"/ok/{number}") for number in range(12)
        ]
        assert failures_of(done) == {"blocked_address": 1, "http_404": 1, "port": 1}
        assert canary.connections == 0
        assert len(done.waves) >= 2
        assert all(path.is_dir() for path in (tmp_path / "waves").iterdir())
