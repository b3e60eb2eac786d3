"""What an index would cost before it is built, at rates measured on this machine; and recipes of well-known pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cdkit.core.config import describe_mistakes, did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.core.threads import thread_count
from cdkit.core.yaml_files import read_yaml
from cdkit.index.assignment import compared
from cdkit.index.brute_force import MOST_MAPPED
from cdkit.index.clustering import CODEBOOK_POINTS, CODEBOOK_ROUNDS, batch_sizes
from cdkit.index.layout import (
    CENTROIDS_PER_CODEBOOK,
    CODE_BYTES,
    Layout,
    choose_layout,
    compressed_layout,
    exact_layout,
)
from cdkit.index.rates import TRIAL_LISTS, Figure, Rates, measure_rates

CODE_SIZES = (16, 32, 48, 64, 128)
SHARD_ROWS = 500_000
PROBES = 32
# What recall is measured with: about so many queries, against so many captions.
QUERIES, MEASURED = 420, 1_000_000
ROWS_PER_PAGE = 3


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
    measure_seconds: Figure
    query_seconds: Figure


@dataclass(frozen=True)
class IndexPlan:
    """The table for `rows` captions of `dimension`; embed_seconds come on top of each choice.

    advice: what would make it faster.
    """

    rows: int
    dimension: int
    rates: Rates
    embed_seconds: Figure
    choices: list[Choice]
    advice: list[str]

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
    embed = _estimated(round(rows / measured.embedded.value, 1), "seconds")
    built = next(choice for choice in table if choice.chosen)
    return IndexPlan(rows, dimension, measured, embed, table, _advice(built, embed, measured))


def _estimated(value: float, unit: str) -> Figure:
    return Figure(value, unit, "estimated")


def _choice(layout: Layout, rates: Rates, *, chosen: bool) -> Choice:
    scanned = layout.captions * min(1.0, PROBES / layout.lists) if layout.lists else 0
    query = scanned / _scan_rate(layout, rates) if layout.lists else 2 * layout.captions * layout.dimension / 2e9
    compared = QUERIES * min(layout.captions, MEASURED) * (layout.dimension + 2 * layout.reduced)
    measuring = _reading(layout, MEASURED, rates) + compared / rates.compared.value
    adding = _adding_seconds(layout, rates) + layout.index_bytes / rates.written.value
    return Choice(
        factory=layout.factory,
        chosen=chosen,
        bytes_per_caption=_estimated(round(layout.index_bytes / layout.captions, 1), "bytes"),
        disk=_estimated(layout.index_bytes, "bytes"),
        build_memory=_estimated(layout.building_bytes(SHARD_ROWS), "bytes"),
        serve_memory=_estimated(layout.serving_bytes, "bytes"),
        training_points=_estimated(layout.training_points, "vectors"),
        train_seconds=_estimated(round(_training_seconds(layout, rates), 1), "seconds"),
        add_seconds=_estimated(round(adding, 1), "seconds"),
        measure_seconds=_estimated(round(measuring, 1), "seconds"),
        query_seconds=_estimated(round(query, 5), "seconds"),
    )


def _advice(choice: Choice, embed: Figure, rates: Rates) -> list[str]:
    """What to change to go faster, by the part that takes longest."""
    seconds = {
        "embedding": embed.value,
        "training": choice.train_seconds.value,
        "adding": choice.add_seconds.value,
        "measuring recall": choice.measure_seconds.value,
    }
    longest = max(seconds, key=lambda part: seconds[part])
    lines = [f"Most of the time goes into {longest}."]
    if rates.on_gpu:
        lines.append("More GPUs share embedding and adding: those of this machine, and of a cluster by --engine ray.")
    else:
        lines.append("A GPU, used where there is one, does embedding, training and adding a hundred times as fast.")
        lines.append(f"This plan is for {rates.threads} threads: --threads takes more, --engine ray more machines.")
    return lines


def _reading(layout: Layout, sample: int, rates: Rates) -> float:
    """Seconds to read a sample: all captions, or for a small share the pages that hold it."""
    read = layout.captions if sample > MOST_MAPPED * layout.captions else ROWS_PER_PAGE * sample
    return read / rates.read.value


def _training_seconds(layout: Layout, rates: Rates) -> float:
    """Reading the sample, and the multiplications of training."""
    if layout.exact:
        return 0.0
    return _reading(layout, layout.training_points, rates) + training_work(layout, rates) / rates.multiplications.value


def training_work(layout: Layout, rates: Rates) -> float:
    """Multiplications of training: the rotation, k-means over the lists, and the codebooks."""
    points = layout.training_points
    coarse = sum(batch_sizes(points, layout.lists)) * _compared(layout, rates) * layout.reduced
    codebooks = min(points, CODEBOOK_POINTS) * CENTROIDS_PER_CODEBOOK * layout.reduced * 2 * CODEBOOK_ROUNDS
    codebooks = 0 if layout.signs else codebooks
    return float(coarse + codebooks + points * layout.dimension * (layout.reduced + layout.dimension))


def _compared(layout: Layout, rates: Rates) -> int:
    """With how many centroids a vector is compared: GPUs take all."""
    return layout.lists if rates.on_gpu else compared(layout.lists)


def _adding_seconds(layout: Layout, rates: Rates) -> float:
    """Reading goes on beside the work. `rates.added` was measured with 1,024 lists, all of which are compared."""
    reading = layout.captions / rates.read.value
    if layout.exact:
        return max(reading, layout.captions / rates.exact.value)
    more = max(0, _compared(layout, rates) - TRIAL_LISTS) * layout.reduced / rates.multiplications.value
    return max(reading, layout.captions * (1 / rates.added.value + more))


def _scan_rate(layout: Layout, rates: Rates) -> float:
    return rates.scanned.value * CODE_BYTES / layout.code_bytes


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
