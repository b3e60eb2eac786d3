"""Benchmark of the compressed index: real CLIP text embeddings plus calibrated noise, queries that are not indexed.

    python -m tests.bench.bench_index [--vectors 1000000] [--queries 2148] [--work FOLDER] [--dimension 512] [--plain]

The 2,148 real vectors are the queries; each indexed vector is one of them, drawn with Zipf frequencies, plus Gaussian
noise. Noise and skew are calibrated so that the neighbours of at least 0.85 per query are about 50 at the median and
2,000 at the 99th percentile. `--dimension` takes fewer of their principal directions, so that more vectors fit.
`--plain` builds the same factory the usual way beside it: as many training points, faiss's own `train` and `add`.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cdkit.core.formatting import json_text
from cdkit.core.manifest import Manifest
from cdkit.core.protocols import Context
from cdkit.core.shards import part_name, parts
from cdkit.core.threads import threads as library_threads
from cdkit.engines.local import LocalEngine
from cdkit.index.brute_force import Queries, Truth, brute_force
from cdkit.index.caption_index import INDEX_NAME, CaptionIndex
from cdkit.index.codes import inspect_shards, write_compressed
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.faiss_index import faiss_threads, open_faiss
from cdkit.index.layout import CODE_BYTES, IndexSettings, compressed_layout
from cdkit.index.recall import Recall, measure
from cdkit.index.records import Records, read_embeddings
from cdkit.index.search import similar
from tests.support import material

THRESHOLD = 0.85
MEDIAN, TAIL = 50, 2000
# The analytic calibration leaves the spread of the noise's own length out; this makes up for it.
AIM = 0.65
SHARD_ROWS = 50_000
NOBODY = np.empty(0, dtype=np.int64)


def real_vectors(dimension: int) -> np.ndarray:
    """The 2,148 real text embeddings in their first principal directions, normalised, float32 [2148, dimension]."""
    folder = material.path("weights/clip_text_embeddings")
    vectors = np.concatenate([np.load(path).astype(np.float32) for path in sorted(folder.glob("*.npy"))])
    if dimension < vectors.shape[1]:
        vectors = np.ascontiguousarray(vectors @ np.linalg.svd(vectors, full_matrices=False)[2][:dimension].T)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # type: ignore[no-any-return]


def calibrate(real: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """The noise level, and how often each real vector is drawn, by bisection on the expected neighbours per query."""
    skew_range = [0.0, 2.0]
    for _ in range(12):
        skew = sum(skew_range) / 2
        level, shares, expected = _calibrate_level(real, count, skew)
        skew_range[int(np.percentile(expected, 99) > TAIL * AIM)] = skew
    return level, shares


def _calibrate_level(real: np.ndarray, count: int, skew: float) -> tuple[float, np.ndarray, np.ndarray]:
    shares = np.arange(1, len(real) + 1, dtype=np.float64) ** -skew
    np.random.default_rng(0).shuffle(shares)
    shares /= shares.sum()
    similarities = real @ real.T
    levels = [0.4, 1.0]
    for _ in range(20):
        level = sum(levels) / 2
        expected = count * (_chance_above(similarities, level, real.shape[1]) @ shares)
        levels[int(np.median(expected) < MEDIAN * AIM)] = level
    return level, shares, expected


def _chance_above(similarities: np.ndarray, level: float, dimension: int) -> np.ndarray:
    """P(cosine of q and the noisy, normalised b ≥ threshold) given that of q and b, to first order in the noise."""
    import torch

    length = math.sqrt(1 + level**2)
    variance = 1 / length**2 + similarities**2 / length**6 - 2 * similarities**2 / length**4
    deviation = level / math.sqrt(dimension) * np.sqrt(np.maximum(variance, 1e-12))
    return torch.special.ndtr(torch.from_numpy((similarities / length - THRESHOLD) / deviation)).numpy()  # type: ignore[no-any-return]


def generate(folder: Path, count: int, dimension: int) -> None:
    """Write the indexed vectors as embedding shards; caption ids are their row numbers."""
    real = real_vectors(dimension)
    level, shares = calibrate(real, count)
    random = np.random.default_rng(0)
    base = random.choice(len(real), count, p=shares)
    for number, start in enumerate(range(0, count, SHARD_ROWS)):
        chosen = real[base[start : start + SHARD_ROWS]]
        noise = random.standard_normal(chosen.shape, dtype=np.float32) * np.float32(level / math.sqrt(dimension))
        vectors = chosen + noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        ids = np.arange(start, start + len(chosen))
        target = folder / "embeddings" / part_name(number)
        with embedding_shard(target, dimension, fingerprint=f"{count}-{number}", facts={}) as writer:
            writer.write(ids, vectors)


def build(folder: Path, count: int, threads: int) -> dict[str, Any]:
    """Build in this process, which has done nothing else yet, so that its peak memory is the build's."""
    shards = inspect_shards(parts(folder / "embeddings"))
    layout = compressed_layout(count, shards.dimension, CODE_BYTES)
    context = Context(LocalEngine(1))
    resumed = (folder / "building").exists()
    clock, used = time.monotonic(), time.process_time()
    write_compressed(folder / INDEX_NAME, layout, shards, NOBODY, IndexSettings(threads=threads), context)
    return {
        "factory": layout.factory,
        "resumed": resumed,
        "build_seconds": round(time.monotonic() - clock, 1),
        "build_cpu_seconds": round(time.process_time() - used, 1),
        "build_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "planned_peak_bytes": layout.building_bytes(SHARD_ROWS),
        "bytes_per_caption": round((folder / INDEX_NAME).stat().st_size / count, 2),
        "lists": layout.lists,
    }


def build_plain(folder: Path, count: int, threads: int) -> dict[str, Any]:
    """The usual way: all vectors in memory, faiss's own training on a sample of them, and `add`."""
    shards = inspect_shards(parts(folder / "embeddings"))
    layout = compressed_layout(count, shards.dimension, CODE_BYTES)
    clock, used = time.monotonic(), time.process_time()
    vectors = np.concatenate([block for _, block in read_embeddings(shards.paths)])
    index = faiss.index_factory(shards.dimension, layout.factory, faiss.METRIC_INNER_PRODUCT)
    with library_threads(threads), faiss_threads(threads):
        index.train(vectors[np.random.default_rng(0).permutation(count)[: layout.training_points]])
        trained = time.process_time() - used
        index.add(vectors)
        faiss.write_index(index, str(folder / "plain.index"))
    return {
        "plain_seconds": round(time.monotonic() - clock, 1),
        "plain_cpu_seconds": round(time.process_time() - used, 1),
        "plain_training_cpu_seconds": round(trained, 1),
        "plain_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def query(folder: Path, asked: int, threads: int, dimension: int) -> dict[str, Any]:
    """Choose the search settings on other queries than those reported, then time every reported one."""
    paths = parts(folder / "embeddings")
    random = np.random.default_rng(1)
    real = random.permutation(real_vectors(dimension))
    reported, tuning = real[:asked], real[-200:]
    opened = open_faiss(folder / INDEX_NAME, exact=False, nprobe=1)
    with library_threads(threads):
        tuned = measure(opened, paths, Queries(tuning, NOBODY), threshold=THRESHOLD, seed=0)
        facts = {"index": {"margin": tuned.margin}}
        manifest = Manifest("index", 1, "bench", {}, {}, details=facts)
        settled = open_faiss(folder / INDEX_NAME, exact=False, nprobe=tuned.nprobe)
        index = CaptionIndex(folder, manifest, settled, Records(folder), None)  # type: ignore[arg-type]
        truth = brute_force(paths, Queries(reported, NOBODY), THRESHOLD, seed=0, sample=1 << 40, total=opened.count)
        settings = {"nprobe": tuned.nprobe, "margin": tuned.margin}
        candidates, asked = _timed(index, reported, truth)
        return {**settings, **asked, **_timed_plain(folder, reported, truth, tuned, candidates)}


def _timed_plain(
    folder: Path, reported: np.ndarray, truth: Truth, tuned: Recall, candidates: Sequence[int]
) -> dict[str, Any]:
    """What plain faiss finds among as many nearest, in as many lists of its own index, if there is one.

    Its random rotation to fewer directions shortens every vector, so that no floor of similarity would do.
    """
    if not (folder / "plain.index").exists():
        return {}
    index = faiss.read_index(str(folder / "plain.index"), faiss.IO_FLAG_MMAP)
    faiss.extract_index_ivf(index).nprobe = tuned.nprobe
    seconds, found = [], 0
    neighbours = truth.neighbours.by_query(len(reported))
    with faiss_threads(1):
        for vector, alike, number in zip(reported, neighbours, candidates, strict=True):
            clock = time.perf_counter()
            _, ids = index.search(vector[None, :], max(1, number))
            seconds.append(time.perf_counter() - clock)
            found += int(np.isin(alike, ids).sum())
    return {
        "plain_threshold_recall": round(found / sum(map(len, neighbours)), 5),
        "plain_ms_median": round(1e3 * float(np.median(seconds)), 2),
        "plain_ms_p99": round(1e3 * float(np.percentile(seconds, 99)), 2),
    }


def _timed(index: CaptionIndex, reported: np.ndarray, truth: Truth) -> tuple[list[int], dict[str, Any]]:
    """The candidates of every query, and what asking took and found."""
    seconds, faiss_seconds, found, candidates = [], [], 0, []
    neighbours = truth.neighbours.by_query(len(reported))
    for vector, alike in zip(reported, neighbours, strict=True):
        clock = time.perf_counter()
        ids, similarities = similar(index, vector, THRESHOLD, index.faiss.count)
        seconds.append(time.perf_counter() - clock)
        found += int(np.isin(alike, ids[similarities >= THRESHOLD]).sum())
        clock = time.perf_counter()
        candidates.append(len(index.faiss.within(vector, THRESHOLD - index.margin).ids))
        faiss_seconds.append(time.perf_counter() - clock)
    sizes = [len(ids) for ids in neighbours]
    return candidates, {
        "queries": len(reported),
        "neighbours_median": float(np.median(sizes)),
        "neighbours_p99": float(np.percentile(sizes, 99)),
        "threshold_recall": round(found / sum(sizes), 5),
        "candidates_median": float(np.median(candidates)),
        "query_ms_median": round(1e3 * float(np.median(seconds)), 2),
        "query_ms_p99": round(1e3 * float(np.percentile(seconds, 99)), 2),
        "faiss_ms_median": round(1e3 * float(np.median(faiss_seconds)), 2),
        "faiss_ms_p99": round(1e3 * float(np.percentile(faiss_seconds, 99)), 2),
    }


def _step(name: str, folder: Path, arguments: argparse.Namespace) -> str:
    """Run one step in a process of its own, whose memory is that step's; returns what it prints."""
    options = ("vectors", "dimension", "threads")
    given = [text for option in options for text in (f"--{option}", str(getattr(arguments, option)))]
    command = [sys.executable, "-m", "tests.bench.bench_index", "--step", name, "--work", str(folder), *given]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=2148)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the data here, to run again sooner")
    parser.add_argument("--dimension", type=int, default=512, help="principal directions that are kept")
    parser.add_argument("--plain", action="store_true", help="build and ask plain faiss too")
    parser.add_argument("--step", choices=["generate", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "generate":
        generate(arguments.work, arguments.vectors, arguments.dimension)
        return
    if arguments.step == "plain":
        print(json_text(build_plain(arguments.work, arguments.vectors, arguments.threads)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        if not parts(folder / "embeddings"):
            _step("generate", folder, arguments)
        built = build(folder, arguments.vectors, arguments.threads)
        if arguments.plain:
            built.update(json.loads(_step("plain", folder, arguments)))
        print(json_text(built), flush=True)
        asked = query(folder, arguments.queries, arguments.threads, arguments.dimension)
        print(json_text({"benchmark": "index", "vectors": arguments.vectors, **built, **asked}))


if __name__ == "__main__":
    main()
