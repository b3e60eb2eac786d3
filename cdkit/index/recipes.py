"""Recipes: YAML files that say how a well-known pool becomes an index, what to expect, and what to know before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from cdkit.config import describe_mistakes, did_you_mean
from cdkit.errors import ConfigError
from cdkit.yaml_files import read_yaml


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
        from cdkit.index.build import IndexConfig

        for name in settings:
            if name not in IndexConfig.model_fields:
                raise ValueError(f"{name}: unknown setting{did_you_mean(name, IndexConfig.model_fields)}")
        return settings

    def values(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Values for IndexConfig: the recipe's, with what the user gave on top."""
        given = {name: value for name, value in overrides.items() if value not in (None, [])}
        files = {"captions": self.captions} if self.captions else {}
        return {**files, **self.settings, **given}


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
