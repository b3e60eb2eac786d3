"""A caption index as it is published: all that searches need, and nothing of what was rejected or removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.captions.pools import MOST_PUNSAFE, safety
from cdkit.core.errors import InputError
from cdkit.core.formatting import command_line
from cdkit.core.manifest import MANIFEST_NAME, Manifest
from cdkit.core.shards import parts, read_parts
from cdkit.index.caption_index import INDEX_NAME, settled_manifest
from cdkit.index.records import REMOVED_NAME
from cdkit.pictures.collection import SCHEME
from cdkit.publishing.publication import (
    CARD_NAME,
    MARK_NAME,
    Publication,
    front_matter,
    licence_entry,
    mark,
    render_card,
)

if TYPE_CHECKING:
    import pyarrow as pa

FOLDERS = ("captions", "image_rows", "embeddings")
PROMPT = "a photo of a dog"
# What the card says of each pool file.
POOL_FACTS = {"file", "pool", "in", "kept"}


def index_publication(folder: Path, name: str, *, licence: str, scratch: Path) -> Publication:
    """What is published of an index. name: of the repository; scratch: where its manifest is written.

    Raises InputError for an index that holds removed rows still, or image rows that are unsafe or unrated, or lie in
    files of this machine.
    """
    manifest = settled_manifest(folder)
    if parts(folder / REMOVED_NAME):
        raise InputError(
            f"{folder} still holds captions or URLs that were removed from it.",
            hint=f"Rewrite its files without them first: {command_line('cdkit', 'index', 'compact', folder)}",
        )
    if _names_files(folder):
        raise InputError(
            f"{folder} is over pictures of this machine: its addresses name folders here, and lead nowhere elsewhere.",
            hint="Publish what cdkit retrieve makes of it: a set names no folder.",
        )
    rows, refused = count_rows(folder)
    if refused:
        reasons = ", ".join(f"{reason}: {number:,}" for reason, number in sorted(refused.items()))
        raise InputError(
            f"{sum(refused.values()):,} of {rows:,} image rows of {folder} must not be published ({reasons}).",
            hint="Build the index again from a pool with safety ratings, without --keep-unrated and with the usual "
            "--nsfw-limit and --max-punsafe; or take those rows out: cdkit index remove --urls-file, then compact.",
        )
    published = public_manifest(manifest, scratch)
    files: dict[str, Path | bytes] = {MANIFEST_NAME: published, INDEX_NAME: folder / INDEX_NAME}
    for kind in FOLDERS:
        files |= {f"{kind}/{path.name}": path for path in parts(folder / kind)}
    files[CARD_NAME] = _card(manifest, name, licence, rows)
    files[MARK_NAME] = mark("index", rows=rows)
    return Publication("index", files, rows)


def _names_files(folder: Path) -> bool:
    import pyarrow.compute as pc

    tables = read_parts(folder / "image_rows", ["url"])
    return any(pc.any(pc.starts_with(table["url"], SCHEME)).as_py() for table in tables)


def count_rows(folder: Path) -> tuple[int, Counter[str]]:
    """How many image rows have an address, and how many of those are unsafe or unrated."""
    rows, refused = 0, Counter[str]()
    for table in _rated(folder):
        for group in table.to_pylist():
            rows += group["url_count"]
            rating = safety(group["nsfw"], {True: 1.0, False: 0.0, None: None}[group["over"]])
            if rating != "safe":
                refused[rating] += group["url_count"]
    return rows, Counter({reason: number for reason, number in refused.items() if number})


def _rated(folder: Path) -> Iterator[pa.Table]:
    """Each shard's image rows counted by what their ratings say: nsfw, over (the limit of punsafe), url_count."""
    import pyarrow.compute as pc

    for table in read_parts(folder / "image_rows", ["url", "nsfw", "punsafe"]):
        # NaN is no probability at all, and counts as over.
        over = pc.invert(pc.less_equal(table["punsafe"], MOST_PUNSAFE))
        counted = table.select(["url", "nsfw"]).append_column("over", over)
        yield counted.group_by(["nsfw", "over"]).aggregate([("url", "count")])


def public_manifest(manifest: Manifest, scratch: Path) -> Path:
    """The manifest without the clock and the name of the machine that made it."""
    replace(manifest, run={"cdkit": manifest.run.get("cdkit")}).write(scratch)
    return scratch / MANIFEST_NAME


def _card(manifest: Manifest, name: str, licence: str, rows: int) -> bytes:
    details = manifest.details
    head = {
        **licence_entry(licence, "see-the-pools"),
        "task_categories": ["text-retrieval"],
        "tags": ["cdkit", "caption-index", "faiss"],
        "configs": [{"config_name": "default", "data_files": "captions/*.parquet"}],
    }
    return render_card(
        "index_card.md.jinja",
        front_matter=front_matter(head),
        name=name,
        prompt=PROMPT,
        captions=int(details.get("captions") or 0),
        rows=rows,
        encoder=details["encoder"],
        index=details["index"],
        recall=details.get("recall") or {},
        files=[entry for entry in details.get("files") or [] if entry.keys() >= POOL_FACTS],
    )
