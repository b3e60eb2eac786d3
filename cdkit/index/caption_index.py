"""A caption index opened for reading: its manifest, its checks, and the FAISS file, memory-mapped."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cdkit.core.errors import InputError, OutputError, pip_install
from cdkit.core.fingerprints import content_fingerprint
from cdkit.core.formatting import command_line
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME, Manifest, mistakes, read_manifest
from cdkit.core.protocols import TextEncoder
from cdkit.core.shards import parts
from cdkit.core.storage import SourceFile
from cdkit.core.text import is_text
from cdkit.encoders import ENCODING
from cdkit.index.changes.transaction import PENDING_NAME, DamagedCommitError, finish_change
from cdkit.index.embedding_files import StoredEmbeddings
from cdkit.index.faiss_index import OpenIndex, id_selector, open_faiss
from cdkit.index.records import REBUILD, Records

INDEX_NAME = "caption.index"
INDEX_FORMAT = 1
PATIENCE_SECONDS = 20.0


@dataclass(frozen=True)
class CaptionIndex:
    """An index opened for reading; safe to search from several threads and processes at once.

    facts: the `index` entry of the manifest's details. encoder: what embeds queries, already loaded.
    """

    folder: Path
    manifest: Manifest
    faiss: OpenIndex
    records: Records
    encoder: TextEncoder

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest.details["index"]  # type: ignore[no-any-return]

    @property
    def margin(self) -> float:
        """How far below the threshold an estimate may lie and still belong to a neighbour."""
        return float(self.facts["margin"])

    @property
    def default_threshold(self) -> float:
        return float(self.manifest.details["encoder"]["default_threshold"])

    @property
    def outdated(self) -> str:
        """What the user should know of an index that an older cdkit made; empty for one that is up to date."""
        return outdated_note(self.folder, self.manifest)

    @cached_property
    def embeddings(self) -> StoredEmbeddings:
        """The embeddings that the index keeps; empty unless it was told to keep them."""
        return StoredEmbeddings(self.folder / "embeddings")

    @cached_property
    def selector(self) -> Any:
        """Keeps removed captions out of every search; None when there are none."""
        removed = self.records.removed.caption_ids
        return id_selector(removed, excluded=True) if len(removed) else None


def open_index(folder: Path, encoder: TextEncoder | str | None = None) -> CaptionIndex:
    """Open the index in `folder`.

    encoder: one already loaded, a spec, or None for the spec in the manifest; it must have the weights the index was
    made with. Raises InputError for a folder that is no finished index, is damaged, or belongs to another encoder.
    """
    from cdkit.encoders import load_text_encoder

    folder = Path(folder)
    manifest = settled_manifest(folder)
    facts = manifest.details["encoder"]
    if encoder is None:
        encoder = str(facts["spec"])
    # On a GPU the default would be half precision; similarities are reported in fp32.
    loaded = load_text_encoder(encoder, precision="fp32") if isinstance(encoder, str) else encoder
    check_encoder(folder, manifest, loaded)
    while True:
        index = manifest.details["index"]
        opened = open_faiss(folder / INDEX_NAME, exact=bool(index["exact"]), nprobe=int(index["nprobe"]))
        # Loading an encoder takes seconds, in which another process may have changed the index.
        current = settled_manifest(folder)
        if current.fingerprint == manifest.fingerprint:
            break
        manifest = current
    check_fits(folder, manifest, opened.index)
    return CaptionIndex(folder, manifest, opened, Records(folder), loaded)


def settled_manifest(folder: Path) -> Manifest:
    """The manifest of a finished, undamaged index; waits for, or finishes, a change that was being committed."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        manifest = None
        try:
            finish_change(folder)
            manifest = index_manifest(folder)
            check_files(folder, manifest)
        except DamagedCommitError:
            raise
        except (InputError, OutputError):
            # While another process swaps files in, the folder may look damaged for a moment.
            changing = (folder / PENDING_NAME).exists() or (
                manifest is not None and index_manifest(folder) != manifest
            )
            if not changing or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return manifest


def index_manifest(folder: Path) -> Manifest:
    """The manifest of a finished index; raises InputError when the folder holds none, or one of a newer format."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist.", hint="Give the folder that cdkit index build wrote.")
    if not is_text(str(folder)):
        raise InputError(f"{folder}: FAISS opens no file in it.", hint="Rename it: its name is not UTF-8.")
    manifest = read_manifest(folder)
    if manifest is None or "index" not in manifest.details:
        started = (folder / "started.json").exists() or manifest is not None
        hint = "Run cdkit index build with this folder as --out" + (" again to finish it." if started else ".")
        raise InputError(f"{folder} holds no finished caption index.", hint=hint)
    facts = manifest.details["index"]
    newer = facts.get("format") if isinstance(facts, dict) else None
    if isinstance(newer, int) and newer > INDEX_FORMAT:
        raise InputError(f"{folder} was written by a newer cdkit.", hint=pip_install(upgrade=True))
    check_facts(folder, manifest)
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise InputError when a shard is missing, or caption.index is not the very file the manifest names."""
    facts = manifest.details["index"]
    # A build that makes it anew was killed, or is under way.
    unfinished = (folder / STARTED_NAME).exists()
    hint = "Run its cdkit index build again to finish it: what is done is kept." if unfinished else REBUILD
    for kind, expected in facts["shards"].items():
        present = len(parts(folder / kind))
        if present != expected:
            raise InputError(f"{folder / kind} holds {present} shards, not {expected}.", hint=hint)
    path = folder / INDEX_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing.", hint=hint)
    # Checked before FAISS parses it: its reader trusts the sizes in the file. The hash is cached by size and mtime.
    if path.stat().st_size != facts["bytes"] or index_hash(path) != facts["sha256"]:
        raise InputError(f"{path} is damaged or was replaced: its hash is not the manifest's.", hint=hint)


def index_hash(path: Path) -> str:
    """sha256 of an index file, remembered by size and mtime so that searches need not hash it again."""
    return content_fingerprint(SourceFile(str(path), path.name, path.stat().st_size))


def check_fits(folder: Path, manifest: Manifest, index: Any = None) -> None:
    """Raise InputError unless the FAISS file (or `index`, when it is open) is as large as the manifest says."""
    facts = manifest.details["index"]
    if index is None:
        index = open_faiss(folder / INDEX_NAME, exact=facts["exact"], nprobe=facts["nprobe"]).index
    if index.ntotal != facts["vectors"] or index.d != manifest.details["encoder"]["dimension"]:
        raise InputError(f"{folder / INDEX_NAME} is not the index that the manifest describes.", hint=REBUILD)


def check_encoder(folder: Path, manifest: Manifest, encoder: TextEncoder) -> None:
    """Raise InputError unless `encoder` is the one the index was made with."""
    facts = manifest.details["encoder"]
    if encoder.weights_hash() != facts["weights"] or encoder.dimension != facts["dimension"]:
        raise InputError(
            f"{folder} was made with the encoder {facts['spec']!r} (weights {facts['weights'][:12]}), "
            f"not with {encoder.spec!r} (weights {encoder.weights_hash()[:12]}).",
            hint="Search with the encoder the index was made with, or build another index.",
        )


def is_outdated(manifest: Manifest) -> bool:
    """Whether the embeddings were made by another reading of captions than the encoders of this cdkit have."""
    return bool(manifest.details["encoder"].get("encoding", 1) != ENCODING)


def outdated_note(folder: Path, manifest: Manifest) -> str:
    """What is wrong with an outdated index, and the command that makes it anew; empty for one that is up to date."""
    if not is_outdated(manifest):
        return ""
    return f"{_problem(folder)} Captions with such may be missed or misplaced. {_renewal(folder, manifest)}"


def refuse_outdated(folder: Path, manifest: Manifest) -> None:
    """Raise InputError for an outdated index: embeddings of two kinds in one index cannot be told apart later."""
    if is_outdated(manifest):
        raise InputError(f"{_problem(folder)} Nothing can be added to it.", hint=_renewal(folder, manifest))


def _problem(folder: Path) -> str:
    return (
        f"The index {folder} is outdated: an older cdkit embedded its captions as written, with entities, curly "
        "quotes and mojibake in them, not as CLIP reads them."
    )


def _renewal(folder: Path, manifest: Manifest) -> str:
    options = ("--encoder", manifest.details["encoder"]["spec"], "--out", folder, "--force", "--captions")
    pools = "the pools and options it was made with"
    if manifest.details.get("additions"):
        pools += " (add again what was added since)"
    return f"Renew it: {command_line('cdkit', 'index', 'build', *options)} … with {pools}."


# More than any machine holds; what is larger no library takes.
_MOST = 1 << 40
_MOST_LISTS = 1 << 30


class _Facts(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _ShardCounts(_Facts):
    captions: int = Field(ge=0)
    image_rows: int = Field(ge=0)
    embeddings: int = Field(ge=0)


class _IndexFacts(_Facts):
    format: int = 0
    factory: str
    exact: bool
    vectors: int = Field(ge=0, le=_MOST)
    bytes: int = Field(ge=0)
    bytes_per_caption: float
    sha256: str
    nprobe: int = Field(ge=1, le=_MOST_LISTS)
    margin: float = Field(ge=0, le=4)
    threads: int | None = Field(None, ge=1, le=1 << 16)
    shards: _ShardCounts


class _EncoderFacts(_Facts):
    spec: str
    weights: str
    dimension: int = Field(ge=1, le=1 << 20)
    default_threshold: float = Field(ge=-1, le=1)
    precision: str = "auto"


class _RecallFacts(_Facts):
    threshold_recall: float | None = None
    top_200_recall: float | None = None
    target: float = 1.0
    target_reached: bool | None = None
    measured_vectors: int = Field(0, ge=0)
    changed_since: list[str] = []

    @model_validator(mode="after")
    def _measured(self) -> _RecallFacts:
        if self.target_reached is False and self.threshold_recall is None and self.top_200_recall is None:
            raise ValueError("a target was missed, but nothing was measured")
        return self


class _AdditionFacts(_Facts):
    fingerprint: str


class _Details(_Facts):
    index: _IndexFacts
    encoder: _EncoderFacts
    recall: _RecallFacts
    captions: int = Field(ge=0)
    rows: int = Field(ge=0)
    removed: dict[str, int] = {}
    additions: list[_AdditionFacts] = []
    files: list[Any] = []


class _RowCounts(_Facts):
    read: int = Field(alias="in")
    kept: int
    rejected: dict[str, int]

    @model_validator(mode="after")
    def _add_up(self) -> _RowCounts:
        if self.read != self.kept + sum(self.rejected.values()):
            raise ValueError("the rows in are not those kept and rejected")
        return self


def check_facts(folder: Path, manifest: Manifest) -> None:
    """Raise InputError, with what is wrong, when the manifest of an index does not say what every index's does."""
    _check(folder, "details", _Details, manifest.details)
    _check(folder, "counts", _RowCounts, manifest.counts)


def _check(folder: Path, entry: str, model: type[BaseModel], values: Mapping[str, Any]) -> None:
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        problems = "; ".join(f"{entry}.{line}" for line in mistakes(error))
        raise InputError(f"{folder / MANIFEST_NAME} is damaged: {problems}", hint=REBUILD) from error
