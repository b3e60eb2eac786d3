"""What this machine does in a second, measured in about one: products, codes, scans, reading and writing."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cdkit.core.machine import choose_device
from cdkit.core.threads import threads as library_threads
from cdkit.index.assignment import GroupedCentroids, compared
from cdkit.index.clustering import Tables, assign_and_encode, tensor_kernels
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.faiss_index import assemble, encode, new_exact, tables_of
from cdkit.index.layout import CENTROIDS_PER_CODEBOOK, CODE_BYTES, exact_layout, product_layout
from cdkit.index.records import read_embeddings

if TYPE_CHECKING:
    import numpy as np
    import torch

TRIAL_LISTS = 1024
TRIAL_ROWS = 2048
# A GPU needs more at once to be busy.
GPU_TRIAL_ROWS = 65_536
# More than are all compared on a CPU.
CPU_TRIAL_CENTROIDS = 8192
# A CLIP text tower has 12 layers of 12 · width² weights; captions have 15.3 tokens on average.
LAYERS, WEIGHTS_PER_LAYER, TOKENS = 12, 12, 15.3
# What embedding reaches of a plain matrix product: launches and attention on GPUs, tokenising and norms on CPUs.
TOWER_SHARE = {"cuda": 0.2, "cpu": 0.7}


@dataclass(frozen=True)
class Figure:
    """A number, its unit, and whether it was measured here or estimated."""

    value: float
    unit: str
    basis: Literal["measured", "estimated"]


@dataclass(frozen=True)
class Rates:
    """What is done per second. On `device`: multiplications in k-means, vectors added behind 1,024 lists, captions
    embedded by a CLIP text tower as wide as the vectors. On the CPU: multiplications in a comparison, embeddings read,
    codes scanned, exact vectors added, bytes written."""

    multiplications: Figure
    added: Figure
    embedded: Figure
    compared: Figure
    read: Figure
    scanned: Figure
    exact: Figure
    written: Figure
    threads: int
    device: str
    on_gpu: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def figures(self) -> dict[str, Figure]:
        """Those that are numbers with a unit, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Figure)}


def measure_rates(dimension: int, threads: int, device: str | None = None) -> Rates:
    """Measure on random vectors of this dimension; tables are random, which costs the same."""
    import numpy as np

    chosen = choose_device(device)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((TRIAL_ROWS, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with library_threads(threads):
        trial = trial_index(dimension)
        return Rates(
            multiplications=_measured(_clustering_work(dimension, vectors, chosen), "multiplications/s"),
            added=_measured(_adding_work(trial, vectors, chosen), "vectors/s"),
            embedded=_embedded(dimension, chosen),
            compared=_measured(_comparing_work(vectors), "multiplications/s"),
            read=_measured(_reading_work(vectors), "vectors/s"),
            scanned=_measured(_scanning_work(trial, vectors), "codes/s"),
            exact=_measured(_exact_work(dimension, vectors), "vectors/s"),
            written=_measured(_writing_work(), "bytes/s"),
            threads=threads,
            device=_device_name(chosen),
            on_gpu=chosen.type == "cuda",
        )


def _device_name(device: torch.device) -> str:
    import platform

    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


Work = tuple[Callable[[], object], float]


def _measured(work: Work, unit: str) -> Figure:
    """Amount per second of the faster of two runs; the first also warms up."""
    run, amount = work
    best = math.inf
    for _ in range(2):
        clock = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - clock)
    return Figure(float(f"{amount / max(best, 1e-9):.3g}"), unit, "measured")


def _on(device: torch.device, vectors: np.ndarray) -> torch.Tensor:
    """`vectors` on the device, as often as it takes to keep it busy."""
    import torch

    points = torch.from_numpy(vectors)
    return points.repeat(GPU_TRIAL_ROWS // len(points), 1).to(device) if device.type == "cuda" else points


def _finish(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _clustering_work(dimension: int, vectors: np.ndarray, device: torch.device) -> Work:
    import torch

    layout = product_layout(10**6, dimension, min(CODE_BYTES, dimension), lists=TRIAL_LISTS)
    points = _on(device, vectors[:, : layout.reduced].copy())
    if device.type != "cuda":
        centroids = torch.randn((CPU_TRIAL_CENTROIDS, layout.reduced), generator=torch.Generator().manual_seed(2))
        grouped = GroupedCentroids.of(centroids)
        return lambda: grouped.nearest(points), float(len(points) * compared(len(centroids)) * layout.reduced)
    centroids = points[: 16 * TRIAL_LISTS]

    def run() -> None:
        tensor_kernels().nearest(points, centroids)
        _finish(device)

    return run, float(len(points) * len(centroids) * layout.reduced)


def trial_index(dimension: int) -> Any:
    """An index of product codes whose tables are random instead of trained."""
    import torch

    layout = product_layout(10**6, dimension, min(CODE_BYTES, dimension), lists=TRIAL_LISTS)
    random = torch.Generator().manual_seed(1)
    shapes = (
        (layout.reduced, dimension),
        (TRIAL_LISTS, layout.reduced),
        (layout.code_bytes, CENTROIDS_PER_CODEBOOK, layout.reduced // layout.code_bytes),
    )
    return assemble(layout, Tables(*(torch.randn(shape, generator=random) for shape in shapes)))


def _adding_work(trial: Any, vectors: np.ndarray, device: torch.device) -> Work:
    if device.type != "cuda":
        return lambda: encode(trial, vectors), float(len(vectors))
    tables, points = tables_of(trial).to(device), _on(device, vectors).half()

    def run() -> None:
        assign_and_encode(tables, points, tensor_kernels())
        _finish(device)

    return run, float(len(points))


def _embedded(dimension: int, device: torch.device) -> Figure:
    """Captions per second, from a product in the tower's shape and the share of it that embedding reaches."""
    import torch

    number = torch.float16 if device.type == "cuda" else torch.float32
    rows = 8 * GPU_TRIAL_ROWS // 16 if device.type == "cuda" else 512
    tokens = torch.ones((rows, dimension), dtype=number, device=device)
    weights = torch.ones((4 * dimension, dimension), dtype=number, device=device)

    def run() -> None:
        torch.nn.functional.linear(tokens, weights)
        _finish(device)

    rate = _measured((run, float(4 * rows * dimension**2)), "multiplications/s").value
    share = TOWER_SHARE["cuda" if device.type == "cuda" else "cpu"]
    per_caption = LAYERS * WEIGHTS_PER_LAYER * dimension**2 * TOKENS
    return Figure(float(f"{share * rate / per_caption:.3g}"), "captions/s", "estimated")


def _comparing_work(vectors: np.ndarray) -> Work:
    import torch

    points = torch.from_numpy(vectors)
    return lambda: (points[:512] @ points.T) > 0.5, float(512 * len(vectors) * vectors.shape[1])


def _reading_work(vectors: np.ndarray) -> Work:
    import numpy as np

    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "part-00000.parquet"
    with embedding_shard(path, vectors.shape[1], fingerprint="trial", facts={}) as writer:
        writer.write(np.arange(len(vectors)), vectors)

    def read() -> None:
        """The folder goes when this function does."""
        for _ in read_embeddings([Path(folder.name) / path.name]):
            pass

    return read, float(len(vectors))


def _scanning_work(trial: Any, vectors: np.ndarray) -> Work:
    import faiss

    library: Any = faiss
    index = faiss.clone_index(trial)
    index.add(vectors)
    lists = library.SearchParametersIVF(nprobe=TRIAL_LISTS)
    everything = library.SearchParametersPreTransform(index_params=lists)
    return lambda: index.search(vectors[:16], 20, params=everything), float(16 * len(vectors))


def _exact_work(dimension: int, vectors: np.ndarray) -> Work:
    import numpy as np

    index = new_exact(exact_layout(10**6, dimension))

    def add() -> None:
        index.reset()
        index.add_with_ids(vectors, np.arange(len(vectors)))

    return add, float(len(vectors))


def _writing_work() -> Work:
    block = b"\x5a" * (16 << 20)
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else None

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as handle:
            handle.write(block)
            handle.flush()

    return write, float(len(block))
