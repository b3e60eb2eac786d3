"""The table of families: every row of the files beside this one, and which of them a pipeline belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.deltas import families
from cdkit.deltas.families.family import Family
from cdkit.deltas.text_features import TOWERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@lru_cache(maxsize=1)
def all_families() -> tuple[Family, ...]:
    """Every family, by the names of their files: a new file with ROWS is all that a new one takes."""
    modules = (import_module(f"{families.__name__}.{found.name}") for found in iter_modules(families.__path__))
    return tuple(row for module in modules for row in getattr(module, "ROWS", ()))


def family_names() -> str:
    """The families' names, for messages."""
    return ", ".join(row.name for row in all_families())


def family_named(pipeline_class: str, base: str) -> Family:
    """The family of a pipeline class as an index names it; raises ConfigError with the nearest for an unknown one."""
    for row in all_families():
        if re.fullmatch(row.index, pipeline_class):
            return row
    shown = pipeline_class[:80] if pipeline_class.isprintable() and pipeline_class else "no name"
    near = did_you_mean(shown, [row.pipeline for row in all_families()])
    raise ConfigError(
        f"{base} is a pipeline of another kind ({shown}){near or '.'}", hint=f"Base models are {family_names()}."
    )


def family_by_name(name: str) -> Family | None:
    """The family of that name, as deltas record it; None when there is none."""
    return next((row for row in all_families() if row.name == name), None)


def family_of(pipeline: DiffusionPipeline) -> Family:
    """The family of a loaded pipeline; raises ConfigError for one of none."""
    parts = {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None}
    return family_of_parts(parts, type(pipeline).__name__)


def family_of_parts(parts: Mapping[str, Any], base: str) -> Family:
    """The family whose denoiser, autoencoder and text encoders have these classes; raises ConfigError for none."""
    for row in all_families():
        if not misfits(row, parts):
            return row
    denoiser = parts.get("transformer") or parts.get("unet") or "none"
    near = did_you_mean(str(denoiser), list(dict.fromkeys(row.denoiser_class for row in all_families())))
    wanted = ("unet", "transformer", "vae", *TOWERS)
    shown = ", ".join(f"{name} {parts[name]}"[:80] for name in wanted if name in parts)
    raise ConfigError(
        f"{base} is a model of another family ({shown}){near or '.'}", hint=f"Base models are {family_names()}."
    )


def misfits(family: Family, parts: Mapping[str, Any]) -> list[str]:
    """Which of a pipeline's parts, by their classes, are not those of a family: `vae AutoencoderTiny`."""
    wanted = {family.denoiser: (family.denoiser_class,), "vae": (family.autoencoder,), **family.texts}
    wrong = [
        f"{name} {parts.get(name, 'missing')}"[:80]
        for name, classes in wanted.items()
        if parts.get(name) not in classes and not (name in family.optional and parts.get(name) is None)
    ]
    known = {*wanted, "text_encoder"}
    others = [name for name in ("unet", "transformer", *TOWERS) if parts.get(name) and name not in known]
    return [*wrong, *(f"{name} {parts[name]}"[:80] for name in others)]


def family_of_denoiser(denoiser: Any) -> Family:
    """The first family whose denoiser has this model's class; raises ConfigError for none."""
    kind = type(denoiser).__name__
    for row in all_families():
        if row.denoiser_class == kind:
            return row
    raise ConfigError(
        f"The method does not fit this model: no family has a {kind}.", hint=f"Base models are {family_names()}."
    )


def denoiser_of(pipeline: DiffusionPipeline) -> Any:
    """The part that trains: the U-Net or the transformer."""
    part = getattr(pipeline, "unet", None)
    return part if part is not None else pipeline.transformer
