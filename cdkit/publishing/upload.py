"""How a publication gets to the hub: large files first, what arrived is not sent again, all visible in one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cdkit.core.errors import OutputError
from cdkit.core.manifest import MANIFEST_NAME
from cdkit.core.protocols import Progress
from cdkit.core.storage import read_json
from cdkit.deltas.delta import DELTA_NAME
from cdkit.fetching.hub import HubError, Repository, hub_errors, without_bars
from cdkit.index.caption_index import INDEX_NAME
from cdkit.pictures.regularization_set import IMAGES
from cdkit.publishing.indexes import FOLDERS
from cdkit.publishing.publication import CARD_NAME, MARK_NAME, Publication
from cdkit.report.picture_box import PICTURES
from cdkit.retrieval.set_folder import CONTACT_SHEET

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo

Answer = TypeVar("Answer")
# What publications consist of: of an earlier one, files by these names go when the new one has none such.
OWNED_FOLDERS = (*FOLDERS, IMAGES, PICTURES)
OWNED_FILES = (INDEX_NAME, MANIFEST_NAME, DELTA_NAME, CONTACT_SHEET, CARD_NAME, MARK_NAME)
# What the hub makes by itself in an empty repository.
OF_THE_HUB = (".gitattributes", CARD_NAME)
FILES_AT_ONCE = 16
# Conflicts and full queues pass; whoever is asked to wait longer than this had better come back.
PAUSES = (1.0, 4.0, 15.0)
LONGEST_WAIT = 60.0
PASSING = (409, 429)


@dataclass(frozen=True)
class Published:
    """Where a publication is. new: whether anything there changed; removed: files of an earlier one that went."""

    url: str
    commit: str
    new: bool
    removed: int


def upload(publication: Publication, repository: Repository, *, private: bool, progress: Progress) -> Published:
    """Bring a publication to a repository, which is made when there is none.

    Killed at any moment, the same call ends the same: nothing is seen before all is there. Raises HubError, and
    OutputError for a repository that holds something else, or is public though a private one was asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(library_name="cdkit")
    with without_bars():
        _patiently(lambda: _make(api, repository, private), repository, progress)
        before = _patiently(lambda: _look(api, repository), repository, progress)
        names = [entry.rfilename for entry in before.siblings or []]
        _check(api, repository, publication, names, is_private=bool(before.private), private=private)
        additions = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in publication.files.items()
        ]
        sizes = publication.sizes
        with progress.task(f"publish {repository.name}", sum(sizes.values()), unit="bytes") as task:
            for start in range(0, len(additions), FILES_AT_ONCE):
                some = additions[start : start + FILES_AT_ONCE]
                _patiently(partial(_send, api, repository, some), repository, progress)
                task.advance(sum(sizes[addition.path_in_repo] for addition in some))
        obsolete = [name for name in names if name not in publication.files and _is_owned(name)]
        operations = [*additions, *_deletions(obsolete)]
        commit = _patiently(lambda: _commit(api, repository, operations), repository, progress)
    return Published(repository.url, commit, commit != before.sha, len(obsolete))


def _make(api: HfApi, repository: Repository, private: bool) -> None:
    api.create_repo(repository.name, repo_type=repository.kind, private=private, exist_ok=True)


def _look(api: HfApi, repository: Repository) -> ModelInfo | DatasetInfo:
    """What is there: its commit, whether it is private, its files."""
    of = api.dataset_info if repository.kind == "dataset" else api.model_info
    return of(repository.name)


def _check(
    api: HfApi,
    repository: Repository,
    publication: Publication,
    names: Sequence[str],
    *,
    is_private: bool,
    private: bool,
) -> None:
    if private and not is_private:
        raise OutputError(
            f"The {repository} is public, and --private was asked for.",
            hint="Make it private in its settings on the hub, or choose another --repo.",
        )
    if not set(names) - set(OF_THE_HUB):
        return
    held: Mapping[str, Any] = {}
    if MARK_NAME in names:
        with hub_errors(repository):
            held = read_json(Path(api.hf_hub_download(repository.name, MARK_NAME, repo_type=repository.kind)))
    if held.get("kind") != publication.kind:
        what = f"the kind {held['kind']}" if held.get("kind") else "files that cdkit did not publish"
        raise OutputError(
            f"The {repository} holds {what}; this is of the kind {publication.kind}.",
            hint="Choose another --repo for it.",
        )


def _is_owned(name: str) -> bool:
    return name in OWNED_FILES or name.startswith(tuple(f"{folder}/" for folder in OWNED_FOLDERS))


def _send(api: HfApi, repository: Repository, additions: Sequence[CommitOperationAdd]) -> None:
    """Store large files with the hub, where nobody sees them yet; it says which it has, and those are not sent."""
    api.preupload_lfs_files(repository.name, list(additions), repo_type=repository.kind, free_memory=False)


def _deletions(names: Sequence[str]) -> list[CommitOperationDelete]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(name) for name in names]


def _commit(api: HfApi, repository: Repository, operations: Sequence[Any]) -> str:
    """One commit with everything; where nothing differs from what is there, none is made."""
    message = "Published with cdkit"
    done = api.create_commit(repository.name, operations, commit_message=message, repo_type=repository.kind)
    return str(done.oid)


def _patiently(work: Callable[[], Answer], repository: Repository, progress: Progress) -> Answer:
    """What `work` answers, asked again after a pause when the hub is busy or was changed meanwhile."""
    for pause in (*PAUSES, None):
        try:
            with hub_errors(repository):
                return work()
        except HubError as error:
            wait = max(pause or 0.0, error.wait or 0.0)
            if pause is None or error.status not in PASSING or wait > LONGEST_WAIT:
                raise
            progress.note(f"{error.message} Trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")
