"""Removal of captions and URLs: tombstones now, which every reader honours; `compact` rewrites the files later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError, InputError, writing
from cdkit.core.formatting import without_userinfo
from cdkit.core.manifest import Counts
from cdkit.core.shards import part_name, parts, write_shard
from cdkit.core.storage import Folder
from cdkit.core.text import caption_id, clean_captions
from cdkit.index.caption_index import check_files, index_manifest
from cdkit.index.changes.transaction import Change, changed_manifest
from cdkit.index.records import REMOVED_NAME, KeyedTable, iterate_image_rows, read_tombstones, tombstone_table

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Removal:
    """What one removal did. unknown: captions or URLs that were not there; they are kept out of later adds too."""

    captions: int
    rows: int
    unknown: int


def remove(folder: Path, *, captions: Sequence[str] = (), urls: Sequence[str] = ()) -> Removal:
    """Remove captions (any spelling that cleans to the same text) and image URLs; killed, it happened or did not.

    A caption whose last image row goes is removed with it. Raises ConfigError when nothing is named, OutputError while
    another run uses the folder.
    """
    import numpy as np

    cleaned = [text for text in clean_captions(list(captions)) if text]
    named = {url.strip(): without_userinfo(url.strip()) for url in urls if url.strip()}
    # As it is stored now, and as an earlier version may have stored it.
    gone = frozenset({*named, *named.values()})
    if not cleaned and not gone:
        raise ConfigError("There is nothing to remove.", hint="Name captions or URLs, one per line.")
    index_manifest(folder)
    with Folder(folder).lock(), writing(folder):
        change = Change.begin(folder)
        manifest = index_manifest(folder)
        check_files(folder, manifest)
        asked = np.unique(np.array([caption_id(text) for text in cleaned], dtype=np.int64))
        before = read_tombstones(folder)
        present = _present(folder, asked)
        indexed = present[before.keep_captions(present)]
        rows, touched, seen = _rows_with(folder, indexed, gone)
        orphaned = _orphaned(folder, touched, gone)
        ids = sorted({*asked.tolist(), *orphaned})
        unknown = len(asked) - len(indexed) + sum(seen.isdisjoint(pair) for pair in named.items())
        removal = Removal(len(set(indexed.tolist()) | orphaned), rows, unknown)
        kept_out = sorted({*named.values(), *seen})
        table = tombstone_table(ids, kept_out)
        mark = hashlib.sha256(repr((ids, kept_out)).encode()).hexdigest()
        name = part_name(len(parts(folder / REMOVED_NAME)))
        write_shard(change.path(f"{REMOVED_NAME}/{name}"), table, fingerprint=mark)
        totals = {
            "captions": manifest.details.get("removed", {}).get("captions", 0) + removal.captions,
            "rows": manifest.details.get("removed", {}).get("rows", 0) + removal.rows,
        }
        details = {
            "removed": totals,
            "captions": manifest.details["captions"] - removal.captions,
            "rows": manifest.details["rows"] - removal.rows,
        }
        counts = Counts(0, -removal.rows, {"removed": removal.rows})
        change.commit(changed_manifest(manifest, {"removed": mark}, details, counts))
    return removal


def read_lines(path: Path) -> list[str]:
    """The lines of a captions or URLs file that are not blank; raises InputError when it cannot be read as text."""
    try:
        # Captions hold characters that end a line for str.splitlines.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="Give a UTF-8 text file, one entry a line."
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _present(folder: Path, ids: np.ndarray) -> np.ndarray:
    import numpy as np

    tables = KeyedTable(folder / "captions").rows(ids, ["caption_id"])
    return np.unique(np.concatenate([np.empty(0, np.int64), *(table["caption_id"].to_numpy() for table in tables)]))


def _rows_with(folder: Path, ids: np.ndarray, urls: frozenset[str]) -> tuple[int, np.ndarray, set[str]]:
    """Image rows that go, the captions of those that go by their URL, and the URLs that were found."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = pa.array(sorted(urls), pa.string())
    rows, seen = 0, set()
    touched = [np.empty(0, dtype=np.int64)]
    for table in iterate_image_rows(folder, ["caption_id", "url"]):
        by_caption = np.isin(table["caption_id"].to_numpy(), ids)
        by_url = pc.is_in(table["url"], value_set=wanted).to_numpy(zero_copy_only=False).astype(bool)
        rows += int((by_caption | by_url).sum())
        named = table.filter(pa.array(by_url))
        seen.update(named["url"].to_pylist())
        touched.append(named["caption_id"].to_numpy())
    return rows, np.unique(np.concatenate(touched)), seen


def _orphaned(folder: Path, touched: np.ndarray, urls: frozenset[str]) -> set[int]:
    """Captions of which no image row is left."""
    import pyarrow as pa
    import pyarrow.compute as pc

    left: set[int] = set()
    removed = read_tombstones(folder)
    wanted = pa.array(sorted(urls), pa.string())
    for table in KeyedTable(folder / "image_rows").rows(touched, ["caption_id", "url"]):
        kept = removed.filter(table)
        kept = kept.filter(pc.invert(pc.is_in(kept["url"], value_set=wanted)))
        left.update(kept["caption_id"].to_pylist())
    return set(touched.tolist()) - left
