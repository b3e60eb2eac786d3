"""What became of URLs: the attempts that a batch's journal tells of, and the image or failure they amount to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.storage import read_json
from cdkit.fetching.failures import DEFERRED, backoff_seconds, is_retryable
from cdkit.fetching.job import ENDED_NAME, IMAGES_NAME, JOB_NAME, SHARD_NAME, Job, journal_events
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
    """The attempts of one batch. A URL that was interrupted with the run has none: it is tried again."""
    if not (folder / JOB_NAME).exists():
        return []
    job = Job.read(folder)
    cause = read_json(folder / ENDED_NAME)["cause"] if (folder / ENDED_NAME).exists() else "interrupted"
    last: dict[int, dict[str, Any]] = {}
    for event in journal_events(folder):
        last[event["key"]] = event
    attempts = []
    for key, url in enumerate(job.urls):
        attempt = _attempt(folder, key, url, last.get(key), cause)
        if attempt is not None:
            attempts.append(attempt)
    return attempts


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
