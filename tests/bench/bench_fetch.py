"""Benchmark of the download: N images wanted from a loopback web whose links die as on the real one.

    python -m tests.bench.bench_fetch [--wanted 200] [--survival 0.93 0.6 0.15] [--deadline 5] [--hosts 40]

At 93 % the statuses are those of the real crawl of CC3M's validation URLs (2019); at other rates its failures are
drawn more often. One host in twenty is hostile: it never answers, drips, or never ends, whatever the link.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from cdkit.core.formatting import json_text
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.engines.local import LocalEngine
from cdkit.fetching.job import FetchSettings
from cdkit.retrieval.accept import Limits
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.download import download
from tests.support import material
from tests.support.accept_all import AcceptAll, failures_of
from tests.support.hostile_server import STATUSES, HostileServer

REAL_SURVIVAL = 0.93
HOSTILE_SHARE = 0.05
# Per accepted image, for each that the survival makes necessary.
MOST_TRIES = 1.2
HOSTILE = ("never", "drip-body", "drip-headers", "endless")


def crawl_failures() -> list[str]:
    """The failed statuses of the real crawl as behaviours of the server, as often as they occurred."""
    import pyarrow.parquet as pq

    table = pq.read_table(material.path("crawl/cc3m_validation_http_report.parquet"), columns=["status"])
    statuses = [str(status) for status in table["status"].to_pylist() if status != 200]
    return [status if status in STATUSES else "404" for status in statuses]


def pool(count: int, survival: float, server: HostileServer, hosts: list[str]) -> list[Candidate]:
    """Candidates whose links work with the given probability."""
    draw = random.Random(int(survival * 1000))
    failures = crawl_failures()
    hostile = set(hosts[: max(1, round(len(hosts) * HOSTILE_SHARE))])
    alive = min(1.0, survival / (1 - HOSTILE_SHARE))
    found = []
    for number in range(count):
        host = draw.choice(hosts)
        if host in hostile:
            behaviour = draw.choice(HOSTILE)
        else:
            behaviour = "ok" if draw.random() < alive else draw.choice(failures)
        url = f"http://{host}:{server.server_address[1]}/{behaviour}/{number}"
        found.append(Candidate("bench", number, f"caption {number}", 0.9, url))
    return found


class PeakMemory:
    """The largest sum of what this process and all its children held, sampled."""

    def __init__(self) -> None:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        this = psutil.Process()
        while not self._done.wait(0.2):
            total = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure(survival: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """One download of `--wanted` images."""
    hosts = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(1, arguments.hosts + 1)]
    with HostileServer("0.0.0.0") as server, tempfile.TemporaryDirectory() as scratch:
        places = tuple(f"{host}:{server.server_address[1]}" for host in hosts)
        count = math.ceil(arguments.wanted / survival * 2)
        candidates = pool(count, survival, server, hosts)
        settings = FetchSettings(deadline=arguments.deadline, allow_hosts=places, max_bytes=1 << 20)
        clock = time.monotonic()
        with PeakMemory() as memory:
            done = download(
                candidates,
                Folder(Path(scratch)),
                Context(LocalEngine(1)),
                limits=Limits(arguments.wanted),
                judge=AcceptAll(),
                settings=settings,
            )
        seconds = time.monotonic() - clock
    assert len(done.accepted) == arguments.wanted, failures_of(done)
    tried_per_fetched = done.tried / len(done.accepted)
    assert tried_per_fetched <= MOST_TRIES / survival, (tried_per_fetched, survival)
    longest = max(done.waves, key=lambda end: end.seconds / end.bound)
    assert longest.seconds <= longest.bound + 1
    return {
        "survival": survival,
        "seconds": round(seconds, 1),
        "tried": done.tried,
        "tried_per_accepted": round(tried_per_fetched, 2),
        "allowed": round(MOST_TRIES / survival, 2),
        "waves": [end.urls for end in done.waves],
        "longest_wave_seconds": longest.seconds,
        "its_bound": longest.bound,
        "peak_bytes": memory.peak,
        "failures": failures_of(done),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wanted", type=int, default=200)
    parser.add_argument("--survival", type=float, nargs="+", default=[REAL_SURVIVAL, 0.6, 0.15])
    parser.add_argument("--deadline", type=float, default=5.0)
    parser.add_argument("--hosts", type=int, default=40)
    arguments = parser.parse_args()
    results = []
    for survival in arguments.survival:
        results.append(measure(survival, arguments))
        print(json_text(results[-1]), flush=True)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json_text({"benchmark": "fetch", "wanted": arguments.wanted, "own_peak_bytes": own, "results": results}))


if __name__ == "__main__":
    main()
