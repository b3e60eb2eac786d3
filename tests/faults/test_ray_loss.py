"""A Ray cluster that loses a worker, and then a whole node, while an import runs on it: the result is the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from cdkit.core.protocols import Outcome
from tests.faults.counts import count
from tests.faults.scenarios import stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ray = pytest.importorskip("ray")


def work(item: tuple[str, int]) -> int:
    """The first time item 3 is worked on, the worker is killed."""
    folder, number = item
    mark = Path(folder) / "killed"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    from cdkit.engines.ray import RayEngine

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        items = [(str(tmp_path), number) for number in range(8)]
        outcomes: list[Outcome[tuple[str, int], int]] = list(RayEngine(2).map(work, items, label="work"))
        assert (tmp_path / "killed").exists()
        assert [outcome.value for outcome in outcomes] == list(range(8))
    finally:
        ray.shutdown()
    count("a Ray worker killed", {"survived": 1})


def test_a_node_that_is_lost(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    words = " ".join(f"star{number}" for number in range(500))
    for file in range(6):
        rows = "".join(f"{words} {file} {row}\n" for row in range(1200))
        (tmp_path / f"captions-{file}.csv").write_text(f"caption\n{rows}")
    pattern = str(tmp_path / "captions-*.csv")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    try:
        loss = threading.Timer(3.0, lambda: cluster.remove_node(node, allow_graceful=False))
        loss.start()
        clock = time.monotonic()
        stage("import", captions=[pattern], engine="ray", workers=2, threads=1).run(tmp_path / "out")
        loss.join()
        print(f"{time.monotonic() - clock:.1f} s")
    finally:
        ray.shutdown()
        cluster.shutdown()
    alone = stage("import", captions=[pattern], workers=1, threads=1)
    alone.run(tmp_path / "alone")
    assert alone.result(tmp_path / "out") == alone.result(tmp_path / "alone")
    count("a Ray node lost in an import", {"survived": 1})
