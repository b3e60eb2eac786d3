"""One batch: what the guarded program is told, the journal it answers with, and what became of its URLs."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cdkit
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.formatting import json_text
from cdkit.core.storage import read_json, write_json, write_text
from cdkit.fetching.failures import DEFERRED, backoff_seconds, is_retryable
from cdkit.fetching.urls import AllowedHosts, proxy_place
from cdkit.pictures.picture import Content, FileContent

JOB_NAME = "job.json"
URLS_NAME = "urls.parquet"
IMAGES_NAME = "images"
BLOCKED_NAME = "blocked.txt"
ENDED_NAME = "ended.json"
LOG_NAME = "program.log"
# The one shard of img2dataset's that every batch is.
SHARD_NAME = "00000"
# A proxy's password is handed to the program by this variable, and stands in no file.
PROXY_VARIABLE = "CDKIT_FETCH_PROXY"
MAX_THREADS = 32
AGENT_TOKEN = "cdkit"
USER_AGENT = f"{AGENT_TOKEN}/{cdkit.__version__} (image fetcher; respects X-Robots-Tag: noai and TDM-Reservation)"


@dataclass(frozen=True)
class FetchSettings:
    """How images are fetched.

    deadline: seconds one fetch may take, from its host's turn to the last byte. retries: further tries after a
    timeout, a reset, a 429 or a 5xx. per_host: connections to one host at a time. survival: share of links expected
    to work, before it is measured; by 0.87 a first wave tries 1.15 URLs an image, too many at no share. allow_hosts:
    `HOST[:PORT]` exempt from the address and port checks. proxy: `http://HOST:PORT` that everything goes through.
    respect_robots: ask every host for robots.txt and ai.txt first. names: answers used instead of DNS: name →
    addresses of the first lookup, of the second, …; without any, the name is never answered.
    """

    threads: int = MAX_THREADS
    deadline: float = 15.0
    retries: int = 1
    per_host: int = 4
    max_bytes: int = 16 << 20
    survival: float = 0.87
    allow_hosts: tuple[str, ...] = ()
    proxy: str | None = None
    user_agent: str = USER_AGENT
    respect_robots: bool = False
    names: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError that lists every impossible setting."""
        problems = [
            f"{name}: between {low} and {high} (got {value})"
            for name, value, low, high in (
                ("threads", self.threads, 1, MAX_THREADS),
                ("deadline", self.deadline, 0.1, 600),
                ("retries", self.retries, 0, 10),
                ("per_host", self.per_host, 1, MAX_THREADS),
                ("max_bytes", self.max_bytes, 1, 1 << 30),
                ("survival", self.survival, 0.001, 1),
            )
            if not low <= value <= high
        ]
        if self.proxy is not None and proxy_place(self.proxy) is None:
            # Not quoted: it may hold a password in a place where nobody would look for one.
            problems.append("proxy: http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT")
        if not self.user_agent.isascii() or not self.user_agent.isprintable():
            problems.append(f"user_agent: printable ASCII (got {self.user_agent!r})")
        if problems:
            raise ConfigError("Images cannot be fetched with these settings:", problems=problems)
        AllowedHosts.parse(list(self.allow_hosts))


@dataclass(frozen=True)
class Job:
    """One batch: the URLs in fetching order (a URL's place is its key), and the hashes some of them must have.

    hashes: key → md5 or sha256 in hex, told apart by their length. blocked: URLs that are never asked for, and
    hashes in hex of bytes that are never written.
    """

    settings: FetchSettings
    urls: tuple[str, ...]
    hashes: Mapping[int, str] = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()

    def through(self, proxy: str | None) -> Job:
        """The same job by this proxy, or by none."""
        return replace(self, settings=replace(self.settings, proxy=proxy))

    def write(self, folder: Path) -> None:
        """Write the job without its proxy, and the table that img2dataset reads; a URL's fragment is its key."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        keyed = [f"{url}#{key}" for key, url in enumerate(self.urls)]
        pq.write_table(pa.table({"url": pa.array(keyed, pa.string())}), folder / URLS_NAME)
        # Lists of hashes can be long, and need not be parsed with the rest.
        if self.blocked:
            write_text(folder / BLOCKED_NAME, "\n".join(sorted(self.blocked)))
        written = replace(self.through(None), blocked=frozenset())
        write_json(folder / JOB_NAME, asdict(written) | {"blocked": bool(self.blocked)})

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Read a job back; raises InputError when it is damaged."""
        values = read_json(folder / JOB_NAME)
        settings = values["settings"]
        settings["allow_hosts"] = tuple(settings["allow_hosts"])
        hashes = {int(key): value for key, value in values["hashes"].items()}
        text = (folder / BLOCKED_NAME).read_text(encoding="utf-8") if values["blocked"] else ""
        return cls(FetchSettings(**settings), tuple(values["urls"]), hashes, frozenset(text.split("\n")) - {""})


class Journal:
    """Events of one process, a JSON line each, appended in one write so that a killed process leaves whole lines."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"journal-{os.getpid()}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._lock = threading.Lock()

    def write(self, key: int, event: str, **facts: Any) -> None:
        """Record what happened to a key: `started`, `fetched`, `deferred` or a failure kind."""
        line = json_text({"key": key, "event": event, "at": time.time(), **facts}) + "\n"
        with self._lock:
            os.write(self._descriptor, line.encode())


def journal_events(folder: Path) -> Iterator[dict[str, Any]]:
    """Every event of a batch, each process's in order; a line cut short by a crash of the machine is left out."""
    for path in sorted(folder.glob("journal-*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("key"), int):
                yield event


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
    attempts = (_attempt(folder, key, url, last.get(key), cause) for key, url in enumerate(job.urls))
    return [attempt for attempt in attempts if attempt is not None]


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
