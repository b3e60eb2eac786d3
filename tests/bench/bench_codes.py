"""Benchmark of ways to code embeddings: how many captions have to be encoded again per caption that is wanted.

    python -m tests.bench.bench_codes EMBEDDINGS --threshold 0.87 [--vectors 100000] [--queries 300] [--only PQ64]

EMBEDDINGS is a folder of embedding shards (`cdkit index build --keep-embeddings`). Every code is made behind the same
number of lists and all lists are probed, so that only the codes differ. The margin below the threshold covers all but
one in a thousand of the true neighbours: recall is 0.999 for all, and the candidates above the margin are the price.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from cdkit.core.formatting import json_text
from cdkit.core.shards import parts
from cdkit.core.threads import threads
from cdkit.index.clustering import learn_tables, principal_directions, rotate, spherical_k_means
from cdkit.index.faiss_index import assemble, faiss_kernels
from cdkit.index.layout import product_layout
from cdkit.index.records import read_embeddings

LISTS = 256
FLOOR = 0.3


def product_codes(vectors: np.ndarray, code_bytes: int) -> Any:
    """The index as cdkit makes it."""
    layout = product_layout(len(vectors), vectors.shape[1], code_bytes, lists=LISTS)
    settings = {"reduced": layout.reduced, "code_bytes": layout.code_bytes, "lists": LISTS, "seed": 0}
    index = assemble(layout, learn_tables(torch.from_numpy(vectors), kernels=faiss_kernels(), **settings))
    index.add(vectors)
    return index


def _behind_directions(vectors: np.ndarray, reduced: int, make: Callable[[Any], Any]) -> Any:
    """An index of `reduced` principal directions, turned at random, whose lists `make` fills."""
    basis = principal_directions(torch.from_numpy(vectors), reduced)
    turn = torch.linalg.qr(torch.randn((reduced, reduced), generator=torch.Generator().manual_seed(0)))[0]
    matrix = turn @ basis
    points = rotate(torch.from_numpy(vectors), matrix)
    flat = faiss.IndexFlatIP(reduced)
    flat.add(spherical_k_means(points, LISTS, faiss_kernels().nearest).numpy())
    transform = faiss.LinearTransform(vectors.shape[1], reduced, False)
    faiss.copy_array_to_vector(matrix.numpy().ravel(), transform.A)
    transform.is_trained = True
    ivf = make(flat)
    if not ivf.invlists:
        lists = faiss.ArrayInvertedLists(LISTS, ivf.code_size)
        ivf.replace_invlists(lists, True)
        lists.this.disown()
    ivf.train(points.numpy())
    index = faiss.IndexPreTransform(transform, ivf)
    index.add(vectors)
    return index


def fast_scan(vectors: np.ndarray, code_bytes: int) -> Any:
    """4-bit codes of residuals, two a byte, laid out for SIMD."""
    parts_count = 2 * code_bytes
    reduced = min(2 * parts_count, vectors.shape[1] // parts_count * parts_count) or parts_count
    metric = faiss.METRIC_INNER_PRODUCT

    def make(flat: Any) -> Any:
        ivf = faiss.IndexIVFPQFastScan(flat, reduced, LISTS, parts_count, 4, metric)
        ivf.by_residual = True
        return ivf

    return _behind_directions(vectors, reduced, make)


def rabitq(vectors: np.ndarray, reduced: int, bits: int) -> Any:
    """Gao and Long, "RaBitQ", 2024: signs (and further bits) of rotated residuals with factors that undo the bias."""
    return _behind_directions(
        vectors,
        reduced,
        lambda flat: faiss.IndexIVFRaBitQ(flat, reduced, LISTS, faiss.METRIC_INNER_PRODUCT, False, bits),
    )


def measure(index: Any, queries: np.ndarray, true: np.ndarray, threshold: float) -> dict[str, float]:
    """Bytes of a code, the margin it needs, and the candidates that lie above it per true neighbour."""
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.nprobe = LISTS
    clock = time.process_time()
    ends, estimates, ids = index.range_search(queries, threshold - FLOOR)
    elapsed = time.process_time() - clock
    asked = np.repeat(np.arange(len(queries)), np.diff(ends).astype(np.int64))
    found = np.full(true.shape, threshold - FLOOR, dtype=np.float32)
    found[asked, ids] = estimates
    alike = true >= threshold
    margin = float(np.quantile((true - found)[alike], 0.999))
    candidates = int((found > threshold - margin).sum())
    return {
        "code_bytes": int(ivf.code_size),
        "margin": round(margin, 4),
        "mean_error": round(float(np.abs(true - found)[alike].mean()), 4),
        "candidates_per_neighbour": round(candidates / int(alike.sum()), 2),
        "scan_cpu_seconds": round(elapsed, 2),
    }


def variants(dimension: int) -> dict[str, Callable[[np.ndarray], Any]]:
    """What is compared, by name."""
    made: dict[str, Callable[[np.ndarray], Any]] = {}
    for size in (64, 48, 40, 32, 24):
        made[f"OPQ, PQ{size}x8"] = lambda vectors, size=size: product_codes(vectors, size)
    for size in (40, 32):
        made[f"PQ{2 * size}x4 fast scan"] = lambda vectors, size=size: fast_scan(vectors, size)
    for reduced, bits in ((384, 1), (320, 1), (256, 1), (128, 1), (128, 2), (96, 2), (64, 4)):
        if reduced <= dimension:
            made[f"RaBitQ {reduced} x {bits} bit"] = lambda vectors, r=reduced, b=bits: rabitq(vectors, r, b)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", type=Path)
    parser.add_argument("--threshold", type=float, required=True)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=[""], help="codes whose names hold one of these")
    arguments = parser.parse_args()
    folder = arguments.embeddings
    if folder.suffix == ".npy":
        vectors = np.load(folder).astype(np.float32)
    else:
        vectors = np.concatenate([block for _, block in read_embeddings(parts(folder))])
    order = np.random.default_rng(0).permutation(len(vectors))[: arguments.vectors + arguments.queries]
    vectors = np.ascontiguousarray(vectors[order])
    queries, vectors = vectors[: arguments.queries], np.ascontiguousarray(vectors[arguments.queries :])
    true = queries @ vectors.T
    figures: dict[str, Any] = {}
    with threads(arguments.threads):
        for name, make in variants(vectors.shape[1]).items():
            if not any(part in name for part in arguments.only):
                continue
            try:
                clock = time.process_time()
                index = make(vectors)
                built = round(time.process_time() - clock, 1)
                figures[name] = {**measure(index, queries, true, arguments.threshold), "build_cpu_seconds": built}
            except (RuntimeError, TypeError) as error:
                figures[name] = {"failed": str(error)[:200]}
            print(json_text({name: figures[name]}), flush=True)
    alike = int((true >= arguments.threshold).sum())
    facts = {"vectors": len(vectors), "dimension": vectors.shape[1], "threshold": arguments.threshold}
    print(json_text({"benchmark": "codes", **facts, "neighbours": alike, "codes": figures}))


if __name__ == "__main__":
    main()
