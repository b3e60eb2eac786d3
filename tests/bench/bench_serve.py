"""Benchmark of `cdkit serve`: many clients at once on 200,000 captions, against one process that searches in a loop.

    python -m tests.bench.bench_serve [--captions 200000] [--clients 32] [--seconds 30] [--work FOLDER]

Every request has a prompt of its own, so that nothing is answered from memory: the query is encoded, the index is
searched, and the captions of the answer are encoded again. The clients run in a process of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from cdkit.core.formatting import json_text
from cdkit.encoders import load_text_encoder
from cdkit.index.caption_index import open_index
from cdkit.index.search import search
from tests.support.small_index import COLOURS, PLACES, SUBJECTS, grammar_captions, make_index

MOST_GRAMMAR = 100_000
LIMIT = 20
BASELINE_SECONDS = 10.0


def build(folder: Path, captions: int) -> Path:
    """An index over distinct captions; made once."""
    if not (folder / "manifest.json").exists():
        plain = grammar_captions(min(captions, MOST_GRAMMAR))
        texts = [*plain, *(f"a photo of {text}" for text in plain)][:captions]
        make_index(folder, texts, load_text_encoder("embedded", precision="fp32"))
    return folder


def prompts(seed: int) -> Iterator[str]:
    """Prompts without end, hardly one of them twice."""
    random = np.random.default_rng(seed)
    for number in itertools.count():
        colour, subject, place = (words[int(random.integers(10))] for words in (COLOURS, SUBJECTS, PLACES))
        yield f"{colour} {subject} at the {place}, picture {number} of {seed}"


def loop(folder: Path, seconds: float) -> float:
    """Searches a second of one process that does nothing else."""
    index = open_index(folder)
    asked = prompts(0)
    search(index, [next(asked)], limit=LIMIT)
    started, done = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        search(index, [next(asked)], min_similarity=0.5, limit=LIMIT)
        done += 1
    return done / (time.monotonic() - started)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the real command, serving in a process of its own."""
    words = [sys.executable, "-m", "cdkit", "serve", str(folder), "--port", "0", "--format", "json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()
            process.wait(60)


async def client(url: str, number: int, until: float, times: list[float], statuses: list[int]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as connection:
        for prompt in prompts(number):
            started = time.monotonic()
            if started >= until:
                return
            params: dict[str, Any] = {"q": prompt, "min_similarity": 0.5, "limit": LIMIT}
            statuses.append((await connection.get("/search", params=params)).status_code)
            times.append(time.monotonic() - started)


async def load(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """What `clients` get that ask all the time, one request each at a time."""
    times: list[float] = []
    statuses: list[int] = []
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(url, number + 1, until, times, statuses) for number in range(clients)))
    return {
        "requests": len(times),
        "errors": sum(status != 200 for status in statuses),
        "queries_per_second": round(len(times) / seconds, 1),
        "p50_ms": round(1000 * float(np.percentile(times, 50)), 1),
        "p99_ms": round(1000 * float(np.percentile(times, 99)), 1),
    }


def measure(folder: Path, *, captions: int, clients: int, seconds: float) -> dict[str, Any]:
    """The figures; the loop runs before and after, as others may use the machine too."""
    build(folder, captions)
    before = loop(folder, BASELINE_SECONDS)
    with served(folder) as url:
        words = ["--url", url, "--clients", str(clients), "--seconds", str(seconds)]
        ran = subprocess.run(
            [sys.executable, "-m", "tests.bench.bench_serve", *words], capture_output=True, text=True, check=True
        )
    after = loop(folder, BASELINE_SECONDS)
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    baseline = (before + after) / 2
    shares = {"loop_per_second": round(baseline, 1), "ratio": round(found["queries_per_second"] / baseline, 2)}
    return {"captions": captions, "clients": clients, "seconds": seconds, **found, **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--work", type=Path, help="keeps the index")
    parser.add_argument("--url", help="only ask a service that runs")
    given = parser.parse_args()
    if given.url:
        print(json_text(asyncio.run(load(given.url, given.clients, given.seconds))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.work or Path(temporary)) / "index"
        sizes = {"captions": given.captions, "clients": given.clients, "seconds": given.seconds}
        print(json_text(measure(folder, **sizes)))


if __name__ == "__main__":
    main()
