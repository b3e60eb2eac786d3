"""A regularization set as it is published: captions, URLs and hashes; pictures where they may be passed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.captions.pools import safety
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import without_userinfo
from cdkit.core.licences import FREE, licence_code
from cdkit.core.manifest import read_manifest
from cdkit.core.shards import part_name, read_shard, write_shard
from cdkit.fetching.urls import host_of
from cdkit.pictures.regularization_set import (
    GENERATED,
    IMAGES,
    NOT_STATED,
    PUBLISHED_CAPTIONS,
    set_shards,
    stated_licences,
)
from cdkit.publishing.publication import (
    CARD_NAME,
    MARK_NAME,
    Publication,
    front_matter,
    licence_entry,
    mark,
    render_card,
)
from cdkit.retrieval.decisions import BY_HAND, DECISIONS_NAME, Decisions, read_decisions
from cdkit.retrieval.set_folder import CONTACT_SHEET

if TYPE_CHECKING:
    import pyarrow as pa

HOSTS_SHOWN = 10


@dataclass(frozen=True)
class SetContents:
    """The rows of a set that may be published, shard by shard; refused: the others by reason."""

    shards: Sequence[pa.Table]
    rows: Sequence[Mapping[str, Any]]
    refused: Mapping[str, int]

    @property
    def drawn(self) -> bool:
        """Whether a base model drew all of them: then no picture belongs to somebody on the web."""
        return all(row["source"] == GENERATED for row in self.rows)

    @property
    def licences(self) -> list[tuple[str, int]]:
        """Licences of the pictures from elsewhere, in their pools' words, and how many have each."""
        return stated_licences(row.get("licence") for row in self.rows if row["source"] != GENERATED)

    @property
    def closed(self) -> int:
        """How many pictures from elsewhere have no licence that lets them be passed on; not stated is none."""
        return sum(number for licence, number in self.licences if licence_code(licence) not in FREE)


def set_publication(folder: Path, name: str, *, with_images: bool, licence: str, scratch: Path) -> Publication:
    """What is published of a set. name: of the repository; licence: for the card where rows state none.

    scratch: where the published shards are written. Raises InputError when no row may be published, ConfigError when
    pictures are asked for and a licence does not allow it.
    """
    contents = read_contents(folder)
    if not contents.rows:
        raise InputError(
            f"{folder} holds no image that may be published: {_reasons(contents.refused)}.",
            hint="Retrieve the set again, from an index of rated rows.",
        )
    if with_images and contents.closed:
        raise ConfigError(
            f"{contents.closed:,} of {len(contents.rows):,} pictures have no licence that lets them be passed on "
            f"({_reasons(dict(contents.licences))}).",
            hint="Leave --with-images out: captions, URLs and hashes are published, from which others can fetch them.",
        )
    pictures = with_images or contents.drawn
    files: dict[str, Path | bytes] = {}
    kind = IMAGES if pictures else PUBLISHED_CAPTIONS
    for number, table in enumerate(contents.shards):
        path = scratch / kind / part_name(number)
        write_shard(path, table if pictures else table.drop_columns(["image"]), fingerprint="published")
        files[f"{kind}/{path.name}"] = path
    # It shows every picture of the set, those that are refused too.
    if pictures and not contents.refused and (folder / CONTACT_SHEET).is_file():
        files[CONTACT_SHEET] = folder / CONTACT_SHEET
    files[CARD_NAME] = _card(folder, name, contents, files, pictures=pictures, licence=licence)
    files[MARK_NAME] = mark("set", pictures=pictures, rows=len(contents.rows))
    return Publication("set", files, len(contents.rows), contents.refused)


def read_contents(folder: Path) -> SetContents:
    """Read a set's rows, and tell those that may be published from the others."""
    decisions = read_decisions(folder / DECISIONS_NAME) if (folder / DECISIONS_NAME).exists() else Decisions()
    shards, rows, refused = list[Any](), list[dict[str, Any]](), Counter[str]()
    for table in _tables(folder):
        facts = table.drop_columns(["image"]).to_pylist()
        reasons = [_refusal(row, decisions) for row in facts]
        refused.update(reason for reason in reasons if reason)
        kept = [place for place, reason in enumerate(reasons) if not reason]
        rows += [facts[place] for place in kept]
        if kept:
            shards.append(table.take(kept))
    return SetContents(shards, rows, dict(sorted(refused.items())))


def _tables(folder: Path) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for path in set_shards(folder):
        table = read_shard(path)
        missing = {"key", "image", "caption", "source", "url", "sha256", "phash"} - set(table.column_names)
        if missing:
            raise InputError(f"{path} has no column {min(missing)}.", hint="Make the set again with cdkit retrieve.")
        # Addresses without user names and passwords.
        urls = [without_userinfo(url) if url else url for url in table["url"].to_pylist()]
        place = table.column_names.index("url")
        table = table.set_column(place, "url", pa.array(urls, pa.string()))
        yield table.filter(pc.is_valid(table["key"])).replace_schema_metadata(table.schema.metadata)


def _refusal(row: Mapping[str, Any], decisions: Decisions) -> str:
    """Why a row is not published; empty when it is."""
    if row["sha256"] in decisions.hashes or decisions.refuse(row["url"]) or row["key"] in decisions.rejected:
        return BY_HAND
    if row["source"] == GENERATED:
        return ""
    rating = safety(row.get("nsfw"), row.get("punsafe"))
    return "" if rating == "safe" else rating


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {number:,}" for reason, number in counts.items()) or "it is empty"


def _card(
    folder: Path, name: str, contents: SetContents, files: Mapping[str, object], *, pictures: bool, licence: str
) -> bytes:
    manifest = read_manifest(folder)
    details = manifest.details if manifest is not None else {}
    hosts = Counter(host_of(row["url"]) if row["url"] else str(row["source"] or NOT_STATED) for row in contents.rows)
    folder_name = IMAGES if pictures else PUBLISHED_CAPTIONS
    head = {
        **licence_entry(licence, "see-each-row"),
        "task_categories": ["text-to-image"],
        "tags": ["cdkit", "custom-diffusion", "regularization-set"],
        "configs": [{"config_name": "default", "data_files": f"{folder_name}/*.parquet"}],
    }
    return render_card(
        "set_card.md.jinja",
        front_matter=front_matter(head),
        name=name,
        prompts=[str(prompt) for prompt in details.get("prompts") or []],
        threshold=details.get("threshold"),
        base=details.get("base"),
        rows=len(contents.rows),
        refused=contents.refused,
        licences=contents.licences,
        hosts=hosts.most_common(HOSTS_SHOWN),
        columns=[column for column in contents.shards[0].column_names if pictures or column != "image"],
        pictures=pictures,
        drawn=contents.drawn,
        sheet=CONTACT_SHEET if CONTACT_SHEET in files else "",
        folder=folder_name,
    )
