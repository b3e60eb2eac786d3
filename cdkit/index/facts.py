"""What the manifest of an index says, checked before anything is done with it: it may have been edited by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cdkit.core.errors import InputError
from cdkit.core.manifest import MANIFEST_NAME, Manifest, mistakes
from cdkit.index.keyed_table import REBUILD

# More than any machine holds; what is larger no library takes.
_MOST = 1 << 40
_MOST_LISTS = 1 << 30


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _ShardCounts(_Facts):
    captions: int = Field(ge=0)
    image_rows: int = Field(ge=0)
    embeddings: int = Field(ge=0)


class _IndexFacts(_Facts):
    format: int = 0
    factory: str
    exact: bool
    vectors: int = Field(ge=0, le=_MOST)
    bytes: int = Field(ge=0)
    bytes_per_caption: float
    sha256: str
    nprobe: int = Field(ge=1, le=_MOST_LISTS)
    margin: float = Field(ge=0, le=4)
    threads: int | None = Field(None, ge=1, le=1 << 16)
    shards: _ShardCounts


class _EncoderFacts(_Facts):
    spec: str
    weights: str
    dimension: int = Field(ge=1, le=1 << 20)
    default_threshold: float = Field(ge=-1, le=1)
    precision: str = "auto"


class _RecallFacts(_Facts):
    threshold_recall: float | None = None
    top_200_recall: float | None = None
    target: float = 1.0
    target_reached: bool | None = None
    measured_vectors: int = Field(0, ge=0)
    changed_since: list[str] = []

    @model_validator(mode="after")
    def _measured(self) -> _RecallFacts:
        if self.target_reached is False and self.threshold_recall is None and self.top_200_recall is None:
            raise ValueError("a target was missed, but nothing was measured")
        return self


class _AdditionFacts(_Facts):
    fingerprint: str


class _Details(_Facts):
    index: _IndexFacts
    encoder: _EncoderFacts
    recall: _RecallFacts
    captions: int = Field(ge=0)
    rows: int = Field(ge=0)
    removed: dict[str, int] = {}
    additions: list[_AdditionFacts] = []
    files: list[Any] = []


class _RowCounts(_Facts):
    read: int = Field(alias="in")
    kept: int
    rejected: dict[str, int]

    @model_validator(mode="after")
    def _add_up(self) -> _RowCounts:
        if self.read != self.kept + sum(self.rejected.values()):
            raise ValueError("the rows in are not those kept and rejected")
        return self


def check_facts(folder: Path, manifest: Manifest) -> None:
    """Raise InputError, with what is wrong, when the manifest of an index does not say what every index's does."""
    _check(folder, "details", _Details, manifest.details)
    _check(folder, "counts", _RowCounts, manifest.counts)


def _check(folder: Path, entry: str, model: type[BaseModel], values: Mapping[str, Any]) -> None:
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        found = "; ".join(f"{entry}.{line}" for line in mistakes(error))
        raise InputError(f"{folder / MANIFEST_NAME} is damaged: {found}", hint=REBUILD) from error
