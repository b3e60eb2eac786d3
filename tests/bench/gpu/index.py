"""Index building on a GPU: clustered synthetic vectors, seconds of every part, recall, rates at full size.

The vectors are made on the device: mixtures of clusters whose centres and spread fall off over the dimensions as those
of text embeddings do. Queries come from the same clusters and are not indexed; the threshold is where the median query
has 50 neighbours among all vectors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from cdkit.core.machine import choose_device
from cdkit.index.clustering import (
    Tables,
    assign_and_encode,
    batch_sizes,
    decode,
    learn_rotation,
    learn_tables,
    nearest,
    rotate,
    spherical_k_means,
    tensor_kernels,
)
from cdkit.index.layout import compressed_layout

NEIGHBOURS = 50
# LAION-400M's distinct captions, and what its index has.
FULL_CAPTIONS, FULL_LISTS = 290_000_000, 131_072


def measure(*, tiny: bool, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of making, learning, coding and recall, each as it is known."""
    import torch

    count, dimension, asked, chunk = (3_000, 16, 20, 2048) if tiny else (10_000_000, 768, 1000, 250_000)
    device = choose_device()
    clock = _Clock(device)
    layout = compressed_layout(count, dimension, 8 if tiny else 64, lists=64 if tiny else None)
    vectors, queries = _vectors(count, dimension, asked, chunk, device)
    yield "vectors", {"count": count, "dimension": dimension, "seconds": clock.lap()}

    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: layout.training_points]
    points = vectors[order.to(device)]
    learned = {"sample": clock.lap()}
    tables = learn_tables(
        points,
        reduced=layout.reduced,
        code_bytes=layout.code_bytes,
        lists=layout.lists,
        seed=0,
        kernels=tensor_kernels(),
        done=lambda part: learned.update({part: clock.lap()}),
    )
    yield (
        "learning",
        {
            "factory": layout.factory,
            "points": len(points),
            "seconds": learned,
            "total": round(sum(learned.values()), 3),
        },
    )

    lists, codes = _code(tables, vectors, chunk)
    elapsed = clock.lap()
    yield "adding", {"seconds": elapsed, "vectors_per_second": round(count / max(elapsed, 1e-9))}
    yield "recall", {**_recall(tables, vectors, lists, codes, queries, chunk), "seconds": clock.lap()}
    yield "full_size", _full_size(points, layout.code_bytes, tiny)


class _Clock:
    """Seconds between laps, the device's work included."""

    def __init__(self, device: Any) -> None:
        self.device, self.started = device, time.perf_counter()

    def lap(self) -> float:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        before, self.started = self.started, time.perf_counter()
        return round(self.started - before, 4)


def _vectors(count: int, dimension: int, asked: int, chunk: int, device: Any) -> tuple[Any, Any]:
    """float16 [count, dimension] and queries [asked, dimension], all of norm 1."""
    import torch

    random = torch.Generator(device=device).manual_seed(0)
    spectrum = torch.arange(1, dimension + 1, device=device).float() ** -0.5
    clusters = max(20, count // 500)
    centres = torch.randn((clusters, dimension), generator=random, device=device) * spectrum

    def draw(rows: int) -> Any:
        chosen = torch.randint(clusters, (rows,), generator=random, device=device)
        spread = torch.randn((rows, dimension), generator=random, device=device) * spectrum
        return torch.nn.functional.normalize(centres[chosen] + 0.4 * spread, dim=1)

    vectors = torch.empty((count, dimension), dtype=torch.float16, device=device)
    for start in range(0, count, chunk):
        vectors[start : start + chunk] = draw(min(chunk, count - start)).half()
    return vectors, draw(asked)


def _code(tables: Tables, vectors: Any, chunk: int) -> tuple[Any, Any]:
    import torch

    blocks = [
        assign_and_encode(tables, vectors[start : start + chunk], tensor_kernels())
        for start in range(0, len(vectors), chunk)
    ]
    return torch.cat([lists for lists, _ in blocks]), torch.cat([codes for _, codes in blocks])


def _recall(tables: Tables, vectors: Any, lists: Any, codes: Any, queries: Any, chunk: int) -> dict[str, Any]:
    """Threshold recall by lists probed: a neighbour counts whose list is probed and whose estimate is a candidate.

    The margin below the threshold covers all but one in a thousand of the neighbours' errors of quantisation.
    """
    import torch

    starts = range(0, len(vectors), chunk)
    best = torch.full((len(queries), NEIGHBOURS), -1.0, device=vectors.device)
    for start in starts:
        similarities = queries.to(vectors.dtype) @ vectors[start : start + chunk].T
        best = torch.cat([best, similarities.float().topk(NEIGHBOURS, dim=1).values], dim=1).topk(NEIGHBOURS).values
    threshold = float(best[:, -1].median())
    turned = rotate(queries, tables.rotation).float()
    pairs, estimates, candidates = [], [], 0
    margin = None
    for start in starts:
        true = queries.to(vectors.dtype) @ vectors[start : start + chunk].T
        asked, rows = torch.nonzero(true.float() >= threshold, as_tuple=True)
        decoded = decode(codes[start + rows], tables.codebooks) + tables.centroids[lists[start + rows]]
        pairs.append((asked, lists[start + rows]))
        estimates.append(torch.stack([true[asked, rows].float(), (turned[asked] * decoded).sum(dim=1)]))
    true, estimate = torch.cat(estimates, dim=1)
    errors = (true - estimate).sort().values
    margin = float(errors[min(len(errors) - 1, int(0.999 * len(errors)))])
    for start in starts:
        decoded = (
            decode(codes[start : start + chunk], tables.codebooks) + tables.centroids[lists[start : start + chunk]]
        )
        candidates += int((turned @ decoded.T > threshold - margin).sum())
    asked, numbers = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    order = (turned @ tables.centroids.T).argsort(dim=1, descending=True).argsort(dim=1)
    ranks = order[asked, numbers]
    near = estimate > threshold - margin
    probes = [2**power for power in range(2, 11) if 2**power <= len(tables.centroids)]
    return {
        "threshold": round(threshold, 4),
        "neighbours": len(true),
        "margin": round(margin, 4),
        "candidates_per_neighbour": round(candidates / max(1, len(true)), 2),
        "threshold_recall": {str(n): round(float((near & (ranks < n)).float().mean()), 4) for n in probes},
    }


def _full_size(points: Any, code_bytes: int, tiny: bool) -> dict[str, Any]:
    """Rates with as many lists as 290 million captions have, on real points, and what they make of those captions."""
    import torch

    layout = compressed_layout(FULL_CAPTIONS, points.shape[1], code_bytes)
    lists = 256 if tiny else FULL_LISTS
    sample = points[: 8 * lists]
    clock = _Clock(points.device)
    rotation = learn_rotation(sample, layout.reduced, layout.code_bytes, tensor_kernels(), seed=0)
    turned = rotate(sample, rotation)
    clock.lap()
    spherical_k_means(turned, lists, nearest)
    training = clock.lap()
    tables = Tables(
        rotation,
        torch.nn.functional.normalize(turned[:lists].float(), dim=1),
        torch.zeros((layout.code_bytes, 256, layout.reduced // layout.code_bytes), device=points.device),
    )
    clock.lap()
    assign_and_encode(tables, sample, tensor_kernels())
    coding = clock.lap()
    rate = len(sample) / max(coding, 1e-9)
    rounds = sum(batch_sizes(layout.training_points, lists)) / sum(batch_sizes(len(sample), lists))
    return {
        "lists": lists,
        "points": len(sample),
        "k_means_seconds": training,
        "adding_vectors_per_second": round(rate),
        "captions": FULL_CAPTIONS,
        "extrapolated_seconds": {"k_means": round(training * rounds, 1), "adding": round(FULL_CAPTIONS / rate, 1)},
    }
