"""What an index would cost before it is built, at rates measured on this machine; and recipes of well-known pools."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cdkit.core.config import describe_mistakes, did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.core.machine import thread_count
from cdkit.core.yaml_files import read_yaml
from cdkit.index.clustering import CODEBOOK_POINTS, CODEBOOK_ROUNDS, Tables, batch_sizes
from cdkit.index.faiss_index import assemble, encode, faiss_threads, new_exact
from cdkit.index.layout import (
    CENTROIDS_PER_CODEBOOK,
    CODE_BYTES,
    Layout,
    choose_layout,
    compressed_layout,
    exact_layout,
)

CODE_SIZES = (16, 32, 64, 128)
SHARD_ROWS = 500_000
PROBES = 32
TRIAL_LISTS = 1024
TRIAL_ROWS = 2048


@dataclass(frozen=True)
class Figure:
    """A number, its unit, and whether it was measured here or estimated."""

    value: float
    unit: str
    basis: Literal["measured", "estimated"]


@dataclass(frozen=True)
class Rates:
    """What this machine does per second: multiplications in k-means, vectors added, codes scanned, bytes written."""

    multiplications: Figure
    added: Figure
    scanned: Figure
    exact: Figure
    written: Figure
    threads: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """One row of the table. chosen: what `cdkit index build` would make."""

    factory: str
    chosen: bool
    bytes_per_caption: Figure
    disk: Figure
    build_memory: Figure
    serve_memory: Figure
    training_points: Figure
    train_seconds: Figure
    add_seconds: Figure
    query_seconds: Figure


@dataclass(frozen=True)
class IndexPlan:
    """The table for `rows` captions of `dimension`; embedding them comes on top."""

    rows: int
    dimension: int
    rates: Rates
    choices: list[Choice]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_index(
    rows: int, dimension: int, code_bytes: int = CODE_BYTES, *, threads: int | None = None, rates: Rates | None = None
) -> IndexPlan:
    """The choices for `rows` vectors: exact, and compressed to several sizes. Measures rates for a few seconds."""
    asked = {"rows": rows, "dim": dimension}
    problems = [f"{name}: at least 1 (got {value})" for name, value in asked.items() if value < 1]
    if problems:
        raise ConfigError("This index cannot be planned:", problems=problems)
    chosen = choose_layout(rows, dimension, code_bytes)
    layouts = [exact_layout(rows, dimension)]
    sizes = sorted({size for size in (*CODE_SIZES, code_bytes) if size <= dimension})
    compressed = [compressed_layout(rows, dimension, size) for size in sizes]
    layouts += [layout for layout in compressed if layout.training_points < rows or layout == chosen]
    measured = rates or measure_rates(dimension, threads or thread_count())
    table = [_choice(layout, measured, chosen=layout == chosen) for layout in dict.fromkeys(layouts)]
    return IndexPlan(rows, dimension, measured, table)


def _choice(layout: Layout, rates: Rates, *, chosen: bool) -> Choice:
    def estimated(value: float, unit: str) -> Figure:
        return Figure(value, unit, "estimated")

    add = layout.captions / rates.exact.value if layout.exact else layout.captions / _add_rate(layout, rates)
    scanned = layout.captions * min(1.0, PROBES / layout.lists) if layout.lists else 0
    query = scanned / _scan_rate(layout, rates) if layout.lists else 2 * layout.captions * layout.dimension / 2e9
    return Choice(
        factory=layout.factory,
        chosen=chosen,
        bytes_per_caption=estimated(round(layout.index_bytes / layout.captions, 1), "bytes"),
        disk=estimated(layout.index_bytes, "bytes"),
        build_memory=estimated(layout.building_bytes(SHARD_ROWS), "bytes"),
        serve_memory=estimated(layout.serving_bytes, "bytes"),
        training_points=estimated(layout.training_points, "vectors"),
        train_seconds=estimated(round(training_work(layout) / rates.multiplications.value, 1), "seconds"),
        add_seconds=estimated(round(add + layout.index_bytes / rates.written.value, 1), "seconds"),
        query_seconds=estimated(round(query, 5), "seconds"),
    )


def training_work(layout: Layout) -> float:
    """Multiplications of training: OPQ rounds, k-means over the lists, and the codebooks."""
    if layout.exact:
        return 0.0
    points = layout.training_points
    coarse = sum(batch_sizes(points, layout.lists)) * layout.lists * layout.reduced
    codebooks = min(points, CODEBOOK_POINTS) * CENTROIDS_PER_CODEBOOK * layout.reduced * 2 * CODEBOOK_ROUNDS
    return float(coarse + codebooks + points * layout.dimension * (layout.reduced + layout.dimension))


def _add_rate(layout: Layout, rates: Rates) -> float:
    """Vectors per second: measured with 1,024 lists; the graph's depth grows with the logarithm of the lists."""
    return rates.added.value * math.log2(TRIAL_LISTS) / max(1.0, math.log2(layout.lists))


def _scan_rate(layout: Layout, rates: Rates) -> float:
    return rates.scanned.value * CODE_BYTES / layout.code_bytes


def measure_rates(dimension: int, threads: int) -> Rates:
    """Measure for about two seconds, on random vectors of this dimension; tables are random, which costs the same."""
    import numpy as np

    random = np.random.default_rng(0)
    vectors = random.standard_normal((TRIAL_ROWS, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with faiss_threads(threads):
        return Rates(
            multiplications=_measured(_kmeans_work(vectors), "multiplications/s"),
            added=_measured(_adding_work(dimension, vectors), "vectors/s"),
            scanned=_measured(_scanning_work(dimension, vectors), "codes/s"),
            exact=_measured(_exact_work(dimension, vectors), "vectors/s"),
            written=_measured(_writing_work(), "bytes/s"),
            threads=threads,
        )


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


def _kmeans_work(vectors: Any) -> Work:
    import faiss

    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return lambda: flat.search(vectors, 1), float(len(vectors) ** 2 * vectors.shape[1])


def _trial_index(dimension: int, vectors: Any) -> Any:
    """An OPQ + IVF + PQ index whose tables are random instead of trained."""
    import torch

    layout = compressed_layout(10**6, dimension, min(CODE_BYTES, dimension), lists=TRIAL_LISTS)
    shapes = (
        (layout.reduced, dimension),
        (TRIAL_LISTS, layout.reduced),
        (layout.code_bytes, CENTROIDS_PER_CODEBOOK, layout.reduced // layout.code_bytes),
    )
    random = torch.Generator().manual_seed(1)
    return assemble(layout, Tables(*(torch.randn(shape, generator=random) for shape in shapes)))


def _adding_work(dimension: int, vectors: Any) -> Work:
    index = _trial_index(dimension, vectors)
    return lambda: encode(index, vectors), float(len(vectors))


def _scanning_work(dimension: int, vectors: Any) -> Work:
    import faiss

    library: Any = faiss
    index = _trial_index(dimension, vectors)
    index.add(vectors)
    lists = library.SearchParametersIVF(nprobe=TRIAL_LISTS)
    everything = library.SearchParametersPreTransform(index_params=lists)
    return lambda: index.search(vectors[:16], 20, params=everything), float(16 * len(vectors))


def _exact_work(dimension: int, vectors: Any) -> Work:
    index = new_exact(exact_layout(10**6, dimension))

    def add() -> None:
        index.reset()
        import numpy as np

        index.add_with_ids(vectors, np.arange(len(vectors)))

    return add, float(len(vectors))


def _writing_work() -> Work:
    block = b"\x5a" * (16 << 20)

    def write() -> None:
        with tempfile.TemporaryFile(dir=Path.cwd()) if _writable(Path.cwd()) else tempfile.TemporaryFile() as handle:
            handle.write(block)
            handle.flush()

    return write, float(len(block))


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK)


class Expected(BaseModel):
    """What to expect: estimates. build_disk_gb counts the embeddings, which go when the index stands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    captions: int
    download_gb: float
    disk_gb: float
    build_disk_gb: float
    time: str


class Recipe(BaseModel):
    """One recipe. settings: fields of IndexConfig, which flags override; captions: the files, if they can be named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    recommended: bool = False
    captions: list[str] = []
    settings: dict[str, Any] = {}
    expected: Expected
    licence: str
    source: str
    warnings: list[str] = []

    @field_validator("settings")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        from cdkit.index.config import IndexConfig

        for name in settings:
            if name not in IndexConfig.model_fields:
                raise ValueError(f"{name}: unknown setting{did_you_mean(name, IndexConfig.model_fields)}")
        return settings

    def values(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Values for IndexConfig: the recipe's, with what the user gave on top."""
        asked = {name: value for name, value in overrides.items() if value not in (None, [])}
        files = {"captions": self.captions} if self.captions else {}
        return {**files, **self.settings, **asked}


def read_recipe(path: Path) -> Recipe:
    """The recipe in a YAML file; raises InputError when it cannot be read, ConfigError that lists every mistake."""
    document = read_yaml(path)
    if not isinstance(document.value, dict):
        raise ConfigError(f"{path} is not a recipe.", hint="It must be a mapping with name, settings and expected.")
    try:
        return Recipe.model_validate(document.value)
    except ValidationError as error:
        problems = [document.located(line) for line in describe_mistakes(error, Recipe)]
        raise ConfigError(f"{path} has mistakes:", problems=problems) from error
