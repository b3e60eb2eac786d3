"""What captions there are to work with: pool files, a built index, one on the hub, the embedded pool, or none."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdkit.captions.config import ImportConfig
from cdkit.captions.reading import inspect, local_copy
from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.manifest import read_manifest
from cdkit.core.shards import parts
from cdkit.core.storage import SourceFile, find_files
from cdkit.fetching.hub import HUB, Repository
from cdkit.index.caption_index import INDEX_NAME
from cdkit.inputs import POOL_SUFFIXES
from cdkit.pictures.collection import is_collection
from cdkit.pictures.folder import list_folder

NONE = "none"
# Where `cdkit index build` and `cdkit run` put indexes in the examples.
_PLACES = ("indexes/*", "runs/*/*")
_MOST_SHOWN = 20


@dataclass(frozen=True)
class CaptionSource:
    """Captions as they were named. pictures: whether they say where their pictures are; None where nobody knows yet.

    described: what they are, for people; encoder: of a built index, where it is known.
    """

    kind: Literal["embedded", "pool", "index", "none"]
    named: tuple[str, ...]
    pictures: bool | None
    described: str
    encoder: str = ""


def look_at_captions(named: Sequence[str]) -> CaptionSource:
    """What captions of these names are.

    Raises InputError when they are not there or no captions, ConfigError for several of which one is an index.
    """
    values = tuple(dict.fromkeys(name.strip() for name in named if name.strip()))
    if not values or values == (NONE,):
        return CaptionSource("none", (), False, "no captions")
    indexes = [value for value in values if value.startswith(HUB) or is_index(Path(value))]
    if len(values) > 1 and (indexes or NONE in values or EMBEDDED in values):
        first = next(value for value in values if value in (*indexes, NONE, EMBEDDED))
        raise ConfigError(f"--captions: {first!r} stands alone.", hint="Several may be given of pool files only.")
    if indexes:
        return _index(values[0])
    if values == (EMBEDDED,):
        return CaptionSource("embedded", values, True, "the pool of the embedded world, 200,000 captions")
    return _pool(values)


def is_index(folder: Path) -> bool:
    """Whether a folder holds a built caption index."""
    return (folder / INDEX_NAME).is_file()


def indexes_at_hand() -> list[str]:
    """The caption indexes that lie in this folder where the examples put them."""
    found = [path for place in _PLACES for path in sorted(Path().glob(place)) if is_index(path)]
    return [str(path) for path in found[:_MOST_SHOWN]]


def _index(value: str) -> CaptionSource:
    if value.startswith(HUB):
        Repository.parse(value, "dataset")
        return CaptionSource("index", (value,), None, "an index on the hub")
    pictures = _has_addresses(Path(value))
    without = "" if pictures else ", which names no pictures"
    return CaptionSource("index", (value,), pictures, f"a built index{without}", _encoder_of(Path(value)))


def _encoder_of(index: Path) -> str:
    manifest = read_manifest(index)
    facts = manifest.details.get("encoder") if manifest is not None else None
    return str(facts.get("spec", "")) if isinstance(facts, dict) else ""


def _has_addresses(index: Path) -> bool:
    """Whether the first image rows of an index have addresses."""
    import pyarrow.parquet as pq

    shards = parts(index / "image_rows")
    table = pq.ParquetFile(shards[0]).read_row_group(0, columns=["url"]) if shards else None
    return table is not None and table["url"].null_count < len(table)


def _pool(values: tuple[str, ...]) -> CaptionSource:
    collections = [value for value in values if _is_picture_folder(value)]
    patterns = [value for value in values if value not in collections]
    files = find_files(patterns, POOL_SUFFIXES) if patterns else []
    local = next((source for source in files if source.is_local), None)
    described = f"{len(files)} pool file{'s' if len(files) != 1 else ''}" if files else "captioned pictures"
    if collections or local is None:
        return CaptionSource("pool", values, True if collections else None, described)
    addresses = _names_pictures(local)
    without = ", which name" + ("s" if len(files) == 1 else "") + " no pictures"
    return CaptionSource("pool", values, addresses, described if addresses else described + without)


def _is_picture_folder(value: str) -> bool:
    folder = Path(value)
    if "://" in value or not folder.is_dir():
        return False
    listing = list_folder(folder)
    return is_collection(listing, [name for name in listing.others if name.lower().endswith(POOL_SUFFIXES)])


def _names_pictures(source: SourceFile) -> bool:
    """Whether a file has a column of addresses; raises InputError when it is damaged or has no captions."""
    config = ImportConfig(captions=[source.url])
    with tempfile.TemporaryDirectory() as scratch, local_copy(source, Path(scratch)) as path:
        return "url" in inspect(source, path, config).layout.columns
