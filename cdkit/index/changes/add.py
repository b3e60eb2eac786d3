"""Adding captions to a finished index: imported, embedded and coded beside it, then committed in one step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cdkit
from cdkit.captions.config import ImportConfig
from cdkit.captions.importing import import_captions
from cdkit.core.config import canonical
from cdkit.core.errors import InputError, writing
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import json_text
from cdkit.core.manifest import Counts, Manifest
from cdkit.core.protocols import Context
from cdkit.core.shards import merge_counts, part_name, parts, read_parts, write_shard
from cdkit.core.storage import Folder, read_json, write_json
from cdkit.core.threads import thread_count
from cdkit.index.caption_index import (
    INDEX_NAME,
    check_encoder,
    check_files,
    check_fits,
    index_manifest,
    refuse_outdated,
)
from cdkit.index.changes.compact import KINDS, rewrite_index, stored_index_facts
from cdkit.index.changes.transaction import Change, changed_manifest, recall_before
from cdkit.index.codes import TRAINED_NAME, encode_shards, inspect_shards
from cdkit.index.inverted_lists import empty_copy
from cdkit.index.layout import IndexSettings
from cdkit.index.records import KeyedTable, Tombstones, read_embeddings, read_tombstones

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

ADDING = "adding"


@dataclass(frozen=True)
class Addition:
    """What one add brought: captions that were new, image rows; already: the same files had been added before."""

    captions: int
    rows: int
    already: bool = False


def add_captions(folder: Path, config: ImportConfig, inputs: Mapping[str, Input], context: Context) -> Addition:
    """Add the pools that `config` names to the index in `folder`, without training it again.

    Captions that are there keep their entry and gain image rows; what was removed stays removed. Killed at any moment,
    the same call goes on. Raises InputError for unusable input and for an outdated index, OutputError while another
    run uses the folder.
    """
    config = ImportConfig.model_validate({name: getattr(config, name) for name in ImportConfig.model_fields})
    refuse_outdated(folder, index_manifest(folder))
    mark = hashlib.sha256(
        json_text([canonical(config), inputs["captions"].fingerprint], sort_keys=True, ascii_only=True).encode()
    ).hexdigest()
    with Folder(folder).lock(), writing(folder):
        change = Change.begin(folder)
        manifest = index_manifest(folder)
        check_files(folder, manifest)
        check_fits(folder, manifest)
        if mark in {addition["fingerprint"] for addition in manifest.details.get("additions", [])}:
            Folder(folder).remove([ADDING])
            return Addition(0, 0, already=True)
        work = _work_folder(folder, mark)
        # What a killed add of another release left was cleaned by other rules.
        imported = import_captions(config, inputs, work, replace(context, fingerprint=f"{mark} {cdkit.__version__}"))
        captions, counts = _write_new(folder, work, read_tombstones(folder), imported.counts)
        facts, recall = dict(manifest.details["index"]), manifest.details["recall"]
        moves = _new_parts(folder, work, "image_rows")
        if captions:
            moves.update(_new_parts(folder, work, "captions"))
            facts.update(_index_new(folder, work, change, manifest, context))
            recall = recall_before(manifest, "add")
            if facts["shards"]["embeddings"]:
                moves.update(_new_parts(folder, work, "embeddings"))
        facts["shards"] = _shard_counts(facts["shards"], moves)
        addition = {"fingerprint": mark, "captions": captions, "rows": counts.kept}
        details = {
            "index": facts,
            "recall": recall,
            "additions": [*manifest.details.get("additions", []), addition],
            "captions": manifest.details["captions"] + captions,
            "rows": manifest.details["rows"] + counts.kept,
            "files": [*manifest.details.get("files", []), *imported.details["files"]],
        }
        change.commit(changed_manifest(manifest, {"added": mark}, details, counts), moves=moves)
        Folder(folder).remove([ADDING])
    return Addition(captions, counts.kept)


def _work_folder(folder: Path, mark: str) -> Folder:
    """Where an add works; what a killed add of other files left is dropped."""
    marker = folder / ADDING / "identity.json"
    if not marker.exists() or read_json(marker) != mark:
        Folder(folder).remove([ADDING])
        (folder / ADDING).mkdir()
        write_json(marker, mark)
    work = Folder(folder / ADDING)
    work.remove_temporaries()
    return work


def _write_new(folder: Path, work: Folder, removed: Tombstones, imported: Counts) -> tuple[int, Counts]:
    """Write what the index does not have yet under adding/new; returns the captions, and what became of the rows."""
    import numpy as np
    import pyarrow as pa

    for kind in ("captions", "image_rows"):
        work.sub("new").remove([kind])
    captions = rows = gone = 0
    shards = zip(read_parts(work / "captions"), read_parts(work / "image_rows"), strict=True)
    for number, (all_captions, all_rows) in enumerate(shards):
        table, image_rows = removed.filter(all_captions), removed.filter(all_rows)
        ids = table["caption_id"].to_numpy()
        indexed = _indexed(folder, ids)
        fresh = table.filter(pa.array(~np.isin(ids, indexed)))
        left = image_rows.filter(pa.array(~_present_rows(folder, image_rows, indexed)))
        for kind, content in (("captions", fresh), ("image_rows", left)):
            write_shard(work / "new" / kind / part_name(number), content, fingerprint="added")
        captions += len(fresh)
        rows += len(left)
        gone += len(all_rows) - len(image_rows)
    passed = {"removed": gone, "in_index": imported.kept - rows - gone}
    return captions, Counts(imported.read, rows, merge_counts([imported.rejected, passed]))


def _indexed(folder: Path, ids: np.ndarray) -> np.ndarray:
    import numpy as np

    tables = KeyedTable(folder / "captions").rows(ids, ["caption_id"])
    return np.concatenate([np.empty(0, dtype=np.int64), *(table["caption_id"].to_numpy() for table in tables)])


def _present_rows(folder: Path, image_rows: pa.Table, indexed: np.ndarray) -> np.ndarray:
    """bool [rows]: which image rows the index has already, same caption and same URL."""
    import numpy as np

    pairs: set[tuple[int, str | None]] = set()
    for table in KeyedTable(folder / "image_rows").rows(indexed, ["caption_id", "url"]):
        pairs.update(zip(table["caption_id"].to_pylist(), table["url"].to_pylist(), strict=True))
    asked = zip(image_rows["caption_id"].to_pylist(), image_rows["url"].to_pylist(), strict=True)
    return np.array([pair in pairs for pair in asked], dtype=bool)


def _index_new(folder: Path, work: Folder, change: Change, manifest: Manifest, context: Context) -> dict[str, Any]:
    """Embed and code the new captions; writes the new index file and returns its facts."""
    import faiss
    import numpy as np

    from cdkit.encoders import load_text_encoder
    from cdkit.index.embedding import embed_captions

    described = manifest.details["encoder"]
    check_encoder(folder, manifest, load_text_encoder(described["spec"]))
    embed_captions(
        work / "new" / "captions",
        work.sub("new").sub("embeddings"),
        described["spec"],
        context=context,
        precision=described.get("precision", "auto"),
    )
    shards = inspect_shards(parts(work / "new" / "embeddings"))
    facts, source = manifest.details["index"], folder / INDEX_NAME

    def add(index: Any) -> None:
        for ids, vectors in read_embeddings(shards.paths):
            if not np.isfinite(vectors).all():
                raise InputError("The new embeddings hold NaN.", hint="Check the encoder's weights.")
            index.add_with_ids(vectors, ids)

    codes = []
    if not facts["exact"]:
        faiss.write_index(empty_copy(source), str(work / TRAINED_NAME))
        threads = int(facts.get("threads") or thread_count())
        codes = encode_shards(work, shards, facts["sha256"], IndexSettings(threads=threads), context)
    vectors = rewrite_index(source, change.path(INDEX_NAME), facts, read_tombstones(folder), add, codes)
    return stored_index_facts(change.path(INDEX_NAME), vectors)


def _new_parts(folder: Path, work: Folder, kind: str) -> dict[str, Path]:
    """The new shards of a kind by the names they get: after the last of any kind, so that numbers keep matching."""
    numbers = [int(path.stem.split("-")[1]) for other in KINDS for path in parts(folder / other)]
    first = max(numbers) + 1
    return {f"{kind}/{part_name(first + number)}": path for number, path in enumerate(parts(work / "new" / kind))}


def _shard_counts(before: dict[str, int], moves: dict[str, Path]) -> dict[str, int]:
    return {kind: count + sum(name.startswith(f"{kind}/") for name in moves) for kind, count in before.items()}
