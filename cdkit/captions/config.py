"""Settings of the import stage."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from cdkit.captions.pools import PRESETS, preset_named
from cdkit.core.config import ParallelConfig, setting
from cdkit.core.errors import CdkitError


class ImportConfig(ParallelConfig):
    """Settings of the import stage."""

    captions: list[str] = setting(
        help="Pool files: paths, folders, globs or URLs of parquet, csv, tsv or jsonl (.gz and .zst too).",
        input="files",
        min_length=1,
    )
    pool: str | None = setting(None, f"Layout of the files [default: detected per file]: {', '.join(PRESETS)}.")
    caption_column: str | None = setting(None, "Column that holds the captions, for tables of your own.")
    url_column: str | None = setting(None, "Column that holds the image URLs, for tables of your own.")
    pool_licence: str | None = setting(
        None, "Licence of the images whose files state none, as the pool's publisher words it."
    )
    keep_unrated: bool = setting(False, "Keep rows without a safety rating in files that rate others.")
    nsfw_limit: Literal["unlikely", "unsure", "nsfw"] = setting(
        "unlikely", "Worst NSFW rating to keep; `nsfw` keeps all."
    )
    max_punsafe: float = setting(
        0.45, "Highest `punsafe` (probability of unsafe content) to keep; 1 keeps all.", ge=0, le=1
    )
    min_side: int | None = setting(
        None, "Reject images whose shorter side is known to be below this, in pixels.", ge=1
    )
    max_aspect_ratio: float | None = setting(
        None, "Reject images known to be longer than this times their shorter side.", ge=1
    )
    memory_gib: float | None = setting(
        None, "Memory for all workers together, in GiB [default: 1 per worker].", execution=True, gt=0
    )

    @field_validator("pool")
    @classmethod
    def _known_pool(cls, pool: str | None) -> str | None:
        if pool is not None:
            try:
                preset_named(pool)
            except CdkitError as error:
                raise ValueError(error.message) from error
        return pool
