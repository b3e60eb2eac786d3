"""The stages that make regularization sets: retrieve finds their images, class-images draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cdkit.core.errors import CdkitError
from cdkit.core.fingerprints import Input
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, finished_facts, part_name
from cdkit.core.storage import Folder
from cdkit.retrieval.class_images import DRAWN, ClassImageDrawer, drawn_rows
from cdkit.retrieval.config import ClassImagesConfig, RetrieveConfig
from cdkit.retrieval.run import RetrievalRun
from cdkit.retrieval.set_folder import BUILDING, REJECTS, drawn_card, write_set


def retrieve(config: RetrieveConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Find `count` images, or as many as there are, and draw the rest where `fill` says so.

    Killed at any moment, the same call gives the same set. Raises InputError when the pool has no URLs and no images
    are given, for a blocklist that cannot be read, and for photos to exclude that do not decode; NetworkError when
    nothing can be fetched; OutputError when the disk is full.
    """
    finished = finished_facts(out / REJECTS / part_name(0), context.fingerprint)
    clocks: dict[str, float] = {}
    if finished is None:
        try:
            finished, clocks = RetrievalRun(config, out, context).run()
        except CdkitError:
            # What failed before an image was there must not stand in the way of the mended command.
            if not any(path.is_file() for path in (out / BUILDING).glob("*/*") if path.parent.name != "candidates"):
                out.remove([BUILDING])
            raise
    out.remove([BUILDING])
    details = finished["details"] | {"clocks": clocks}
    decided = details["accepted"] + sum(details["rejected"].values())
    counts = Counts(decided, details["accepted"], details["rejected"])
    return Dataset("regularization_set", out.path, counts, details, finished["shortfall"])


def class_images(config: ClassImagesConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Draw `count` images into a regularization set; killed, the same call draws what is missing.

    Raises ConfigError when the model draws nothing but blank images.
    """
    folder = out.sub(BUILDING).sub(DRAWN).path
    rows, rejected = drawn_rows(config, ClassImageDrawer(config.sampling(), config.seed, folder, context))
    title = f"{len(rows)} images drawn by {config.base}: {', '.join(config.prompts)}"
    card = drawn_card(config.prompts, len(rows), str(config.base))
    write_set(out, rows, context.fingerprint, title=title, card=card, layouts=config.also_write)
    out.remove([BUILDING])
    details: dict[str, Any] = {
        "asked": config.count,
        "accepted": len(rows),
        "generated": len(rows),
        "tried": len(rows) + sum(rejected.values()),
        "rejected": rejected,
        "prompts": config.prompts,
        "base": config.base,
        "steps": config.steps,
        "guidance": config.guidance,
    }
    return Dataset("regularization_set", out.path, Counts(details["tried"], len(rows), rejected), details)
