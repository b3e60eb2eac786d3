"""A change of several files of an index at once: prepared beside them, then committed, whenever it is killed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.core.manifest import MANIFEST_NAME, Counts, Manifest
from cdkit.core.shards import merge_counts
from cdkit.core.storage import Folder, flush_names, read_json, write_json

PENDING_NAME = "pending"
COMMIT_NAME = "commit.json"
# The files of an index folder, and what is prepared in it to take their place.
_FILE_NAME = re.compile(r"(\w+/){0,4}(part-\d+\.parquet|caption\.index)")


@dataclass(frozen=True)
class Change:
    """Files prepared under pending/ by the paths they will have in the index folder. The caller holds the lock."""

    folder: Path

    @classmethod
    def begin(cls, folder: Path) -> Change:
        """Start anew: what an earlier change prepared and did not commit is dropped."""
        finish_change_locked(folder)
        Folder(folder).remove([PENDING_NAME])
        return cls(folder)

    def path(self, name: str) -> Path:
        """Where to write the file that will be `name`."""
        target = self.folder / PENDING_NAME / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def commit(
        self, manifest: Manifest, *, moves: Mapping[str, Path] | None = None, deletes: Iterable[str] = ()
    ) -> None:
        """Put everything in place. moves: further files, by the names they get; deletes: names that go away.

        From the moment commit.json exists the change will happen: whoever opens the folder next finishes it.
        """
        pending = self.folder / PENDING_NAME
        manifest.write(pending)
        prepared = pending / "files"
        sources = {str(path.relative_to(prepared)): path for path in sorted(prepared.rglob("*")) if path.is_file()}
        sources.update(moves or {})
        named = {name: str(path.relative_to(self.folder)) for name, path in sources.items()}
        flush_names(self.folder)
        write_json(pending / COMMIT_NAME, {"moves": named, "deletes": sorted(set(deletes) - set(named))})
        # A power loss must not keep some of the moves and lose what says that all are to be made.
        flush_names(pending)
        finish_change_locked(self.folder)


def finish_change(folder: Path) -> None:
    """Finish a change that was committed but not completed; raises OutputError while another process does so."""
    if (folder / PENDING_NAME / COMMIT_NAME).exists():
        with Folder(folder).lock():
            finish_change_locked(folder)


def finish_change_locked(folder: Path) -> None:
    """The same for a caller that holds the folder's lock. Every step may be repeated."""
    pending = folder / PENDING_NAME
    if not (pending / COMMIT_NAME).exists():
        return
    commit = _read_commit(pending / COMMIT_NAME)
    for name in commit["moves"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    # A power loss must not take a new folder with what was moved into it.
    flush_names(folder, below=False)
    for name, source in commit["moves"].items():
        if (folder / source).exists():
            os.replace(folder / source, folder / name)
    for name in commit["deletes"]:
        (folder / name).unlink(missing_ok=True)
    if (pending / MANIFEST_NAME).exists():
        os.replace(pending / MANIFEST_NAME, folder / MANIFEST_NAME)
    flush_names(folder)
    # The marker goes first: a half-deleted pending folder without it is only litter.
    (pending / COMMIT_NAME).unlink()
    Folder(folder).remove([PENDING_NAME])


class DamagedCommitError(InputError):
    """A change whose commit.json cannot be read any more: nothing will ever finish it."""


def _read_commit(path: Path) -> dict[str, Any]:
    """What was committed; raises InputError when it is damaged, or means a file that is not the index's.

    A folder that came from elsewhere must not say which files are moved and deleted outside of it.
    """
    try:
        commit = read_json(path)
        names = [*commit["moves"].keys(), *commit["moves"].values(), *commit["deletes"]]
        if not all(_FILE_NAME.fullmatch(name) for name in names):
            raise ValueError("it names files that are not an index's")
    except (InputError, KeyError, TypeError, AttributeError, ValueError) as error:
        hint = f"Delete {path.parent} to go back to the state before the change, then change the index again."
        raise DamagedCommitError(f"{path} is damaged: {error}", hint=hint) from error
    return commit  # type: ignore[no-any-return]


def changed_manifest(
    manifest: Manifest, what: Mapping[str, Any], details: Mapping[str, Any], counts: Counts | None = None
) -> Manifest:
    """The manifest after a change: a new fingerprint, so that what was made from the old state is made again.

    The build's own fingerprint stays among the steps: the same build command still finds its work done. counts: the
    rows that came and went, to be added to those of the manifest.
    """
    fingerprint = hashlib.sha256(
        json_text([manifest.fingerprint, dict(what)], sort_keys=True, ascii_only=True).encode()
    ).hexdigest()
    steps = {manifest.stage: manifest.fingerprint, **manifest.steps}
    details = {**manifest.details, **details}
    return replace(
        manifest, fingerprint=fingerprint, steps=steps, details=details, counts=_summed(manifest.counts, counts)
    )


def _summed(before: Mapping[str, Any], more: Counts | None) -> dict[str, Any]:
    if more is None or not before:
        return dict(before)
    rejected = merge_counts([before["rejected"], more.rejected])
    return Counts(before["in"] + more.read, before["kept"] + more.kept, rejected).as_json()


def recall_before(manifest: Manifest, change: str) -> dict[str, Any]:
    """The `recall` entry after vectors came or went: it says what was measured, and what has changed since then."""
    recall = manifest.details["recall"]
    return {**recall, "changed_since": [*recall.get("changed_since", []), change]}
