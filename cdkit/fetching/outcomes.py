"""What became of a URL: an image that was got, not decoded yet, or a failure."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError, InputError
from cdkit.core.protocols import Engine
from cdkit.core.storage import atomic_path, read_json
from cdkit.fetching.batches import ENDED_NAME, SHARD_NAME, WaveEnd, run_wave
from cdkit.fetching.failures import DEFERRED, backoff_seconds, is_retryable
from cdkit.fetching.job import IMAGES_NAME, JOB_NAME, Job, journal_events
from cdkit.fetching.urls import host_of
from cdkit.pictures.picture import Content, FileContent


@dataclass(frozen=True)
class FetchedImage:
    """An image that was got, not decoded yet. sha256: of the bytes as they came, None where not read yet."""

    url: str | None
    content: Content
    sha256: str | None = None
    size: int | None = None
    status: int | None = None


@dataclass(frozen=True)
class FailedFetch:
    """A URL that was given up. kind: one of failures.FAILURE_KINDS; status: the HTTP status where there was one."""

    url: str | None
    kind: str
    status: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class ShardResult:
    """A shard that was fetched on another machine: its folder's files by relative path, and how it ended."""

    files: dict[str, bytes]
    end: WaveEnd


def split(job: Job, shards: int) -> list[Job]:
    """The job in at most `shards` parts of about the same size; a host stays in one, so that its turns are kept."""
    hosts: dict[str, list[int]] = {}
    for key, url in enumerate(job.urls):
        hosts.setdefault(host_of(url), []).append(key)
    parts: list[list[int]] = [[] for _ in range(min(shards, len(hosts)))]
    for keys in sorted(hosts.values(), key=len, reverse=True):
        min(parts, key=len).extend(keys)
    return [_part(job, sorted(keys)) for keys in parts]


def _part(job: Job, keys: Sequence[int]) -> Job:
    hashes = {place: job.hashes[key] for place, key in enumerate(keys) if key in job.hashes}
    return replace(job, urls=tuple(job.urls[key] for key in keys), hashes=hashes)


def fetch_shard(job: Job) -> ShardResult:
    """Run the guarded program on local disk, wherever this is called, and hand over what it wrote."""
    with tempfile.TemporaryDirectory(prefix="cdkit-fetch-") as scratch:
        folder = Path(scratch) / "wave"
        end = run_wave(folder, job)
        # img2dataset's own notes are left behind: the journal and the images say it all.
        images = (folder / IMAGES_NAME).rglob("*.jpg")
        paths = [path for path in (*folder.iterdir(), *images) if path.is_file()]
        return ShardResult({str(path.relative_to(folder)): path.read_bytes() for path in paths}, end)


def fetch_elsewhere(engine: Engine, jobs: Sequence[Job], folders: Sequence[Path]) -> Iterator[WaveEnd]:
    """Run one shard per job on the engine's workers and put each result into its folder, whole or not at all."""
    outcomes = engine.map(fetch_shard, jobs, label="fetch")
    for outcome, folder in zip(outcomes, folders, strict=True):
        if isinstance(outcome.error, CdkitError):
            raise outcome.error
        if outcome.value is None:
            # The machine is gone, and what it fetched with it: its URLs are tried again.
            yield WaveEnd("crashed", len(outcome.item.urls), 0.0, 0.0)
            continue
        with atomic_path(folder) as temporary:
            for name, content in outcome.value.files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield outcome.value.end


@dataclass(frozen=True)
class Attempt:
    """One try of one URL that came to an end. at: clock time in seconds; image: set when it was fetched."""

    url: str
    kind: str
    at: float
    status: int | None = None
    detail: str = ""
    retry_after: float | None = None
    image: FetchedImage | None = None


@dataclass(frozen=True)
class Waiting:
    """A URL that may be tried (again) from `due` on, in clock seconds."""

    due: float = 0.0


def read_wave(folder: Path) -> list[Attempt]:
    """The attempts of one wave. A URL that was interrupted with the run has none: it is tried again."""
    if not (folder / JOB_NAME).exists():
        return []
    job = Job.read(folder)
    cause = read_json(folder / ENDED_NAME)["cause"] if (folder / ENDED_NAME).exists() else "interrupted"
    last: dict[int, dict[str, Any]] = {}
    for event in journal_events(folder):
        last[event["key"]] = event
    found = []
    for key, url in enumerate(job.urls):
        attempt = _attempt(folder, key, url, last.get(key), cause)
        if attempt is not None:
            found.append(attempt)
    return found


def _attempt(folder: Path, key: int, url: str, event: Mapping[str, Any] | None, cause: str) -> Attempt | None:
    at = float(event["at"]) if event else 0.0
    kind = event["event"] if event else None
    if event is not None and kind == "fetched":
        content = FileContent(folder / IMAGES_NAME / SHARD_NAME / f"{key:09d}.jpg")
        if _is_whole(content, event["sha256"]):
            image = FetchedImage(url, content, event["sha256"], event["bytes"], event["status"])
            return Attempt(url, "fetched", at, event["status"], image=image)
        kind = None
    if event is not None and kind not in (None, "started", DEFERRED):
        return Attempt(url, str(kind), at, event["status"], event["detail"], event["retry_after"])
    if kind == DEFERRED:
        return None
    if cause == "finished":
        return Attempt(url, "lost", at, detail="img2dataset gave neither an image nor an error")
    if cause == "bound" and kind == "started":
        return Attempt(url, "timeout", at, detail="the wave was ended")
    return None


def _is_whole(content: FileContent, sha256: str) -> bool:
    """Whether the file that img2dataset wrote is the body that was received, to the last byte."""
    try:
        return hashlib.sha256(content.read()).hexdigest() == sha256
    except InputError:
        return False


def settle(attempts: Sequence[Attempt], retries: int) -> FetchedImage | FailedFetch | Waiting:
    """What a URL's attempts, oldest first, amount to."""
    for attempt in attempts:
        if attempt.image is not None:
            return attempt.image
    if not attempts:
        return Waiting()
    last = attempts[-1]
    if len(attempts) <= retries and is_retryable(last.kind, last.status, last.retry_after):
        return Waiting(last.at + backoff_seconds(len(attempts), last.retry_after))
    return FailedFetch(last.url, last.kind, last.status, last.detail)
