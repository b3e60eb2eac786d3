"""Benchmark of a whole retrieval: 200 real photos from a loopback web of which 60 % of the links work.

    python -m tests.bench.bench_retrieve [--wanted 200] [--survival 0.6] [--deadline 5] [--hosts 40] [--rounds 2]

Then curation alone, two workers, against img2dataset's own resize path in two processes: the same photos decoded,
shrunk to 256 pixels and encoded as JPEG at quality 95; cdkit also hashes them and looks for blank ones.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdkit import encoders
from cdkit.core.formatting import json_text
from cdkit.execute import execute
from cdkit.pictures.picture import FileContent
from cdkit.retrieval.config import RetrieveConfig
from cdkit.retrieval.inspect import InspectionRules, Inspectors
from tests.bench.bench_fetch import HOSTILE, HOSTILE_SHARE, PeakMemory, crawl_failures
from tests.support.hashing_encoder import HashingEncoder
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import Photo, PoolPicture, index_of, real_photos

WORKERS = 2
SMALL_SIDE = 256


def rows_on(server: HostileServer, photos: Sequence[Photo], hosts: list[str], survival: float) -> list[PoolPicture]:
    """One row per photo, each with a caption of its own, on links that work with the given probability."""
    draw = random.Random(1)
    failures = crawl_failures()
    hostile = set(hosts[: max(1, round(len(hosts) * HOSTILE_SHARE))])
    alive = survival / (1 - HOSTILE_SHARE)
    rows = []
    for number, photo in enumerate(photos):
        server.files[f"/file/{number}.jpg"] = photo.path.read_bytes()
        host = draw.choice(hosts)
        if host in hostile:
            path = f"{draw.choice(HOSTILE)}/{number}"
        else:
            path = f"file/{number}.jpg" if draw.random() < alive else f"{draw.choice(failures)}/{number}"
        url = f"http://{host}:{server.server_address[1]}/{path}"
        rows.append(PoolPicture(f"a photo of a {photo.category} number {number}", url))
    return rows


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure_retrieval(photos: Sequence[Photo], arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """One run of the retrieve stage; the index is made before, and its encoder takes no time."""
    encoder = HashingEncoder(threshold=0.3)
    encoders.load_text_encoder = lambda *_, **__: encoder  # type: ignore[assignment]
    hosts = [f"127.0.{number // 250}.{number % 250 + 1}" for number in range(1, arguments.hosts + 1)]
    with HostileServer("0.0.0.0") as server:
        index = index_of(scratch / "index", rows_on(server, photos, hosts, arguments.survival), encoder)
        config = RetrieveConfig(
            index=str(index),
            prompts=["a photo of a number"],
            count=arguments.wanted,
            min_similarity=0.3,
            deadline=arguments.deadline,
            allow_host=[f"{host}:{server.server_address[1]}" for host in hosts],
            workers=WORKERS,
        )
        clock, processor = time.monotonic(), cpu_seconds()
        with PeakMemory() as memory:
            result = execute("retrieve", config, scratch / "set")
        seconds, busy = time.monotonic() - clock, cpu_seconds() - processor
    details = result.manifest.details
    assert details["accepted"] == arguments.wanted, result.manifest.shortfall
    waiting = details["clocks"]["waves_seconds"]
    return {
        "seconds": round(seconds, 1),
        "share_in_waves": round(waiting / seconds, 3),
        "cpu_seconds": round(busy, 1),
        "urls_tried": details["clocks"]["urls_tried"],
        "decided": details["tried"],
        "rejected": details["rejected"],
        "peak_bytes": memory.peak,
    }


def curate(photos: Sequence[Photo], store: Path) -> float:
    """Seconds in which two workers inspect all photos, without their start."""
    rules = InspectionRules(max_side=SMALL_SIDE)
    contents = [FileContent(photo.path) for photo in photos]
    with Inspectors(rules, store, workers=WORKERS) as inspectors:
        list(inspectors.inspect(contents[:WORKERS]))
        clock = time.monotonic()
        found = dict(inspectors.inspect(contents))
        seconds = time.monotonic() - clock
    assert all(inspection.name for inspection in found.values())
    return seconds


_RESIZER: Any = None


def start_resizer() -> None:
    """Make img2dataset's resizer in a worker process."""
    global _RESIZER  # noqa: PLW0603 - a process pool's initializer can leave its work nowhere else
    import cv2
    from img2dataset.resizer import Resizer

    cv2.setNumThreads(1)
    _RESIZER = Resizer(
        image_size=SMALL_SIDE,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_quality=95,
        encode_format="jpg",
    )


def resize(path: Path) -> int:
    """Bytes of the photo as img2dataset encodes it; 0 when it fails."""
    content, *_, error = _RESIZER(io.BytesIO(path.read_bytes()))
    return 0 if error else len(content)


def resize_all(photos: Sequence[Photo]) -> float:
    """Seconds in which two processes resize all photos, without their start."""
    paths = [photo.path for photo in photos]
    with multiprocessing.get_context("spawn").Pool(WORKERS, initializer=start_resizer) as pool:
        pool.map(resize, paths[: WORKERS * 4], chunksize=1)
        clock = time.monotonic()
        sizes = pool.map(resize, paths, chunksize=16)
        seconds = time.monotonic() - clock
    assert all(sizes)
    return seconds


def measure_curation(photos: Sequence[Photo], rounds: int, scratch: Path) -> dict[str, Any]:
    """The best of several rounds in which the two sides take turns."""
    ours, theirs = [], []
    for number in range(rounds):
        store = scratch / f"store-{number}"
        store.mkdir()
        ours.append(curate(photos, store))
        theirs.append(resize_all(photos))
    rates = {"cdkit": len(photos) / min(ours), "img2dataset_resize": len(photos) / min(theirs)}
    return {
        "photos": len(photos),
        "workers": WORKERS,
        **{f"{name}_images_per_second": round(rate, 1) for name, rate in rates.items()},
        "ratio": round(rates["cdkit"] / rates["img2dataset_resize"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wanted", type=int, default=200)
    parser.add_argument("--survival", type=float, default=0.6)
    parser.add_argument("--deadline", type=float, default=5.0)
    parser.add_argument("--hosts", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    photos = real_photos()
    with tempfile.TemporaryDirectory() as folder:
        retrieval = measure_retrieval(photos, arguments, Path(folder))
        print(json_text(retrieval), flush=True)
        curation = measure_curation(photos, arguments.rounds, Path(folder))
    print(json_text({"benchmark": "retrieve", "wanted": arguments.wanted, **retrieval, "curation": curation}))


if __name__ == "__main__":
    main()
