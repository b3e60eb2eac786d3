"""From a folder that cdkit made to what is published of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.manifest import read_manifest
from cdkit.core.shards import parts
from cdkit.deltas.delta import DELTA_NAME
from cdkit.index.caption_index import INDEX_NAME
from cdkit.pictures.regularization_set import IMAGES, MAKERS, refuse_unfinished
from cdkit.publishing.deltas import delta_publication
from cdkit.publishing.indexes import index_publication
from cdkit.publishing.publication import OTHER, Kind, Publication
from cdkit.publishing.sets import set_publication


@dataclass(frozen=True)
class PublishSettings:
    """How something is published.

    with_images: of a set the pictures too; licence: as the hub names it, for the card; samples: a folder of cdkit
    sample that the card of a delta shows.
    """

    with_images: bool = False
    licence: str = OTHER
    samples: Path | None = None


def kind_of(path: Path) -> Kind:
    """What a folder or file is; raises InputError for what cannot be published."""
    if path.is_file() or (path / DELTA_NAME).exists():
        return "delta"
    if not path.exists():
        raise InputError(f"{path} does not exist.", hint="Give a set, a delta or an index that cdkit made.")
    refuse_unfinished(path)
    manifest = read_manifest(path)
    if (path / INDEX_NAME).exists() or (manifest is not None and "index" in manifest.details):
        return "index"
    if manifest.stage in MAKERS if manifest is not None else parts(path / IMAGES):
        return "set"
    raise InputError(
        f"{path} is no regularization set, no delta and no caption index.",
        hint="Give the folder that cdkit retrieve, class-images, train, merge or index build made.",
    )


def prepare(path: Path, name: str, settings: PublishSettings, scratch: Path) -> Publication:
    """What is published of `path` as the repository `name`; made files go to `scratch`.

    Raises InputError for what cannot be published, ConfigError for settings that do not fit it.
    """
    kind = kind_of(path)
    if settings.with_images and kind != "set":
        raise ConfigError(f"--with-images is for sets; {path} is of the kind {kind}.", hint="Leave it out.")
    if settings.samples is not None and kind != "delta":
        raise ConfigError(f"--samples is for deltas; {path} is of the kind {kind}.", hint="Leave it out.")
    if kind == "set":
        return set_publication(path, name, with_images=settings.with_images, licence=settings.licence, scratch=scratch)
    if kind == "index":
        return index_publication(path, name, licence=settings.licence, scratch=scratch)
    return delta_publication(path, name, licence=settings.licence, samples=settings.samples, scratch=scratch)
