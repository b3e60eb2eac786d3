"""The folder of a regularization set: images, contact sheet, README and the layouts asked for; the rejects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cdkit.core.errors import ConfigError
from cdkit.core.formatting import markdown_text
from cdkit.core.shards import part_name, schema, write_shard
from cdkit.core.storage import Folder, flush_names, write_text
from cdkit.fetching.blocklist import BLOCKLISTED
from cdkit.pictures.collection import is_address
from cdkit.pictures.grid import write_contact_sheet
from cdkit.pictures.layouts import write_layouts
from cdkit.pictures.regularization_set import GENERATED, IMAGES, SetRow, stated_licences, write_images
from cdkit.pictures.trained_concept import TrainedConcept, class_of, trained_concept
from cdkit.pictures.trainers import TRAINERS

if TYPE_CHECKING:
    from cdkit.retrieval.accept import Downloaded
    from cdkit.retrieval.candidates import Candidate
    from cdkit.retrieval.config import TrainerSettings
    from cdkit.retrieval.curate import Curator
    from cdkit.retrieval.funnel import Funnel
    from cdkit.retrieval.matching import MatchedPhotos

Note = Callable[[str], None]
# What a stage keeps while it works; gone when it has ended.
BUILDING = "building"
REJECTS = "rejects"
CONTACT_SHEET = "contact_sheet.png"
CARD = "README.md"
# `datasets.load_dataset` finds the images by this.
_FRONT_MATTER = """\
---
configs:
  - config_name: default
    data_files: images/*.parquet
---
"""
_RETRIEVED = """\
# Regularization set: {prompts}

{accepted:,} images whose captions have a similarity of at least {threshold:g} to the prompts; {asked:,} were asked
for. `images/` holds them with their captions and where each came from (`url`, `sha256` of the original file),
`rejects/` why others are not among them; `contact_sheet.png` shows them, `manifest.json` counts every step. Made by
`cdkit retrieve`.

```python
import datasets  # pip install datasets

images = datasets.load_dataset("path/to/this/folder", split="train")
```

Licences as their pool states them (`licence` and `attribution` of each image): {licences}. The images belong to
whoever made them: that a picture can be fetched grants no right to pass it on.
"""
_DRAWN = """\
# Class images: {prompts}

{number:,} images that {base} drew for the prompts, with the prompt as caption and `generated` as source.
`contact_sheet.png` shows them. Made by `cdkit class-images`.
"""


def write_set(out: Folder, rows: Sequence[SetRow], fingerprint: str, *, title: str, card: str) -> None:
    """Write a set. title: of the contact sheet; card: the text of README.md."""
    out.remove([IMAGES])
    write_images(out, rows, fingerprint)
    write_contact_sheet(out / CONTACT_SHEET, rows, title)
    write_text(out / CARD, card)


def concept_beside(
    layouts: Sequence[str], photos: str | None, words: TrainerSettings, prompts: Sequence[str]
) -> TrainedConcept | None:
    """The concept that trainers' layouts show beside a set for `prompts`; None where none of these is asked for.

    Raises ConfigError where nothing says what the set shows, InputError for a folder without usable photos.
    """
    if photos is None or not any(layout in TRAINERS for layout in layouts):
        return None
    if words.class_word is None and not prompts:
        raise ConfigError("Nothing says what this set shows.", hint="Add --class-word, for example --class-word dog.")
    return trained_concept(photos, words.instance_word, words.class_word or class_of(prompts[0]))


def write_layouts_beside(
    layouts: Sequence[str], out: Folder, rows: Sequence[SetRow], concept: TrainedConcept | None, note: Note
) -> dict[str, Any]:
    """Write a set's layouts; returns what the manifest says of trainers'. Notes a set that is too small for them."""
    written = write_layouts(layouts, out, rows, concept)
    if concept is not None and len(rows) < len(concept.photos):
        note(
            f"{len(rows)} regularization images beside {len(concept.photos)} photos: each is shown more often than a "
            "photo, and is learned too. Usual are 200, or at least one per photo."
            if rows
            else "The set is empty: trainers' layouts, which show it as often as the photos, are left out."
        )
    return {name: layout.as_json() for name, layout in written.items()}


def retrieved_card(prompts: Sequence[str], counted: Funnel, rows: Sequence[SetRow]) -> str:
    """README.md of a set that was retrieved."""
    licences = stated_licences(row.licence for row in rows if row.source != GENERATED)
    return _FRONT_MATTER + _RETRIEVED.format(
        prompts=markdown_text(", ".join(prompts)),
        accepted=counted.accepted,
        asked=counted.asked,
        threshold=counted.threshold,
        licences=", ".join(f"{markdown_text(licence)} {number:,}" for licence, number in licences) or "none",
    )


def drawn_card(prompts: Sequence[str], number: int, base: str) -> str:
    """README.md of a set that a base model drew."""
    return _FRONT_MATTER + _DRAWN.format(prompts=markdown_text(", ".join(prompts)), number=number, base=base)


def set_rows(done: Downloaded, curator: Curator) -> list[SetRow]:
    """The accepted images in their order, as rows about to be written."""
    rows = []
    for number, (candidate, image) in enumerate(done.accepted):
        inspection = curator.inspection(image)
        rows.append(
            SetRow(
                key=f"{number:06d}",
                path=curator.store / inspection.name,
                caption=candidate.caption,
                similarity=candidate.similarity,
                url=None if is_address(candidate.url) else candidate.url,
                width=inspection.width,
                height=inspection.height,
                sha256=inspection.sha256,
                phash=f"{inspection.phash:016x}",
                source=_source(candidate),
                query=candidate.query,
                nsfw=candidate.nsfw,
                punsafe=candidate.punsafe,
                licence=candidate.licence,
                attribution=candidate.attribution,
            )
        )
    return rows


def matched_images(photos: MatchedPhotos, done: Downloaded, rows: Sequence[SetRow]) -> list[dict[str, Any]]:
    """Which images stand for which photo: per photo their keys, and the nearest caption among theirs."""
    standing: dict[str | None, list[tuple[str, Candidate]]] = {}
    for row, (candidate, _) in zip(rows, done.accepted, strict=True):
        standing.setdefault(candidate.photo, []).append((row.key, candidate))
    matched = []
    for photo in photos.photos:
        images = standing.get(photo.name, [])
        entry: dict[str, Any] = {"photo": photo.name, "caption": photo.caption or None}
        entry["images"] = [key for key, _ in images]
        if images:
            nearest = max(
                (candidate for _, candidate in images), key=lambda candidate: candidate.photo_similarity or 0
            )
            entry |= {"nearest": nearest.caption, "nearest_similarity": nearest.photo_similarity}
        matched.append(entry)
    return matched


def _source(candidate: Candidate) -> str | None:
    """Where an image came from: its pool file, or the folder and the file of a collection, not where that lies."""
    if not is_address(candidate.url):
        return candidate.source
    return f"{candidate.source}/{unquote(str(candidate.url).rpartition('/')[2])}"


def write_rejects(out: Folder, done: Downloaded, curator: Curator, fingerprint: str, facts: Mapping[str, Any]) -> None:
    """Write rejects/: one row per candidate that was decided and is not in the set; its facts are the result."""
    import pyarrow as pa

    table = pa.Table.from_pylist(list(_rejected_rows(done, curator)), schema=schema("retrieval_rejects"))
    # With these the set counts as written: what is in it must be on the disk before.
    flush_names(out.path)
    write_shard(out / REJECTS / part_name(0), table, fingerprint=fingerprint, facts=facts)


def _rejected_rows(done: Downloaded, curator: Curator) -> Iterator[dict[str, Any]]:
    """Of blocklisted candidates nothing but a hash is written."""
    for candidate, failure in done.failed:
        yield _row(candidate, failure.kind, failure.status, failure.detail, "")
    for candidate, image, reason in done.turned_down:
        inspection = curator.inspection(image)
        detail = inspection.detail if inspection.reason else ""
        yield _row(candidate, reason, image.status, detail, inspection.sha256)


def _row(candidate: Candidate, reason: str, status: int | None, detail: str, sha256: str) -> dict[str, Any]:
    row: dict[str, Any] = {"reason": reason, "status": status, "detail": detail or None, "sha256": sha256 or None}
    if reason == BLOCKLISTED:
        return row
    facts = ("url", "caption_id", "caption", "similarity", "source")
    return row | {name: getattr(candidate, name) for name in facts}
