"""Manifests and fingerprints: what a folder holds, what it was made from, and whether it is done."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

import cdkit
from cdkit.core.errors import InputError, pip_install
from cdkit.core.formatting import json_text
from cdkit.core.storage import flush_names, read_json, write_json
from cdkit.core.threads import thread_count

MANIFEST_NAME = "manifest.json"
STARTED_NAME = "started.json"
MANIFEST_FORMAT = 1
RECORDED_LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "faiss-cpu", "numpy")


@dataclass(frozen=True)
class Counts:
    """Rows in, kept and rejected by reason; the three always add up."""

    read: int = 0
    kept: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.read != self.kept + sum(self.rejected.values()):
            raise AssertionError(
                f"rows do not add up: {self.read} in, {self.kept} kept, {dict(self.rejected)} rejected"
            )

    def as_json(self) -> dict[str, Any]:
        return {"in": self.read, "kept": self.kept, "rejected": dict(sorted(self.rejected.items()))}


@dataclass(frozen=True)
class Identity:
    """What decides a stage's output: stage, version, canonical config, and each input's fingerprint."""

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """sha256 over the whole identity, in hex."""
        text = json_text(
            [self.stage, self.version, dict(self.config), dict(self.inputs)],
            sort_keys=True,
            compact=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """The record written last into a stage's folder; clocks and hosts are in `run` and nowhere else."""

    stage: str
    version: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    steps: dict[str, str] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    shortfall: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    format: int = MANIFEST_FORMAT

    def identity(self) -> Identity:
        return Identity(self.stage, self.version, self.config, self.inputs)

    def write(self, folder: Path, name: str = MANIFEST_NAME) -> None:
        """Write the manifest atomically: a power loss after it takes nothing of what it stands for."""
        if name == MANIFEST_NAME:
            flush_names(folder)
        write_json(folder / name, asdict(self))
        flush_names(folder)


class _RunRecord(BaseModel):
    """What reports reckon with of a run record; whatever else stands in it is shown as it is."""

    started: str = ""
    ended: str = ""
    seconds: float | None = None
    peak_process_bytes: int | None = None
    continued: bool = False
    drawn: int | None = None
    drawing_seconds: float | None = None


class DamagedManifestError(InputError):
    """A manifest that was cdkit's, cut off or edited by hand since."""


def read_manifest(folder: Path, name: str = MANIFEST_NAME) -> Manifest | None:
    """The manifest of `folder`; None when there is none.

    Raises DamagedManifestError when it is damaged, InputError when it is another program's or of a newer format.
    """
    path = folder / name
    if not path.exists():
        return None
    try:
        values = read_json(path)
    except InputError as error:
        raise _damaged(path, error.message.removeprefix(f"{path} ")) from error
    if not isinstance(values, dict) or "fingerprint" not in values or "stage" not in values:
        raise InputError(f"{path} is not a cdkit manifest.", hint="Point to a folder that cdkit made.")
    newer = values.get("format")
    if isinstance(newer, int) and newer > MANIFEST_FORMAT:
        raise InputError(f"{path} was written by a newer cdkit.", hint=pip_install(upgrade=True))
    try:
        manifest = _manifest_type().validate_python(values)
        _RunRecord.model_validate(manifest.run)
        return manifest
    except ValidationError as error:
        raise _damaged(path, "; ".join(mistakes(error))) from error


def is_damaged(folder: Path) -> bool:
    """Whether what says what `folder` holds cannot be read any more."""
    try:
        read_manifest(folder, STARTED_NAME)
        read_manifest(folder)
    except DamagedManifestError:
        return True
    return False


@cache
def _manifest_type() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def mistakes(error: ValidationError) -> list[str]:
    """What is wrong with a JSON file that was read, one short line per value; the first few."""
    lines = []
    for mistake in error.errors(include_url=False, include_input=False)[:3]:
        place = ".".join(str(part) for part in mistake["loc"])
        lines.append(f"{place}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}")
    return lines


def _damaged(path: Path, what: str) -> DamagedManifestError:
    hint = "Restore it from a copy, or make the folder again: the command that made it, with --force."
    return DamagedManifestError(f"{path} is damaged: {what}", hint=hint)


def differences(old: Identity, new: Identity) -> list[str]:
    """What changed between two identities, one readable line per value."""
    if old.stage != new.stage:
        return [f"it was made by stage {old.stage!r}, not {new.stage!r}"]
    lines = []
    if old.version != new.version:
        lines.append(f"stage version {old.version} → {new.version}")
    for key in sorted({*old.config, *new.config}):
        before, after = old.config.get(key), new.config.get(key)
        if before != after:
            lines.append(f"{key}: {json_text(before)} → {json_text(after)}")
    for key in sorted({*old.inputs, *new.inputs}):
        if old.inputs.get(key) != new.inputs.get(key):
            lines.append(f"input {key} changed")
    return lines


def run_record(
    started: datetime,
    seconds: float,
    peak: int | None = None,
    *,
    continued: bool = False,
    clocks: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Clock, host and versions of one run: facts that never enter a fingerprint.

    peak: the memory of its largest process in bytes, where it is known; continued: whether a part was there already,
    so that the seconds are of the rest; clocks: what the stage measured itself.
    """
    return {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "peak_process_bytes": peak,
        "threads": thread_count(),
        **({"continued": True} if continued else {}),
        **(clocks or {}),
        "host": platform.node(),
        "python": platform.python_version(),
        "cdkit": cdkit.__version__,
        "versions": _library_versions(),
    }


def _library_versions() -> dict[str, str]:
    """Versions of the libraries whose arithmetic decides results, without importing them."""
    versions = {}
    for name in RECORDED_LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
