"""What identifies content, the cache of what was computed from it, and the inputs of a stage with theirs."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cdkit.core.config import InputKind
from cdkit.core.errors import CdkitError
from cdkit.core.storage import SourceFile, _reading_problem

if TYPE_CHECKING:
    from sqlite3 import Connection

    import numpy as np

Found = TypeVar("Found")
TIMEOUT_SECONDS = 5.0
AT_ONCE = 500
DAY = 86_400


class _Opened(threading.local):
    """This thread's connections. A process may not use, and not even close, what it was forked with: by process."""

    def __init__(self) -> None:
        self.connections: dict[tuple[int, Path], Connection | None] = {}


_OPENED = _Opened()


@dataclass(frozen=True)
class CacheFile:
    """Values by key, for any number of processes at once. Keys are digests; the `most` last used ones are kept.

    A file that is damaged is made anew; one that cannot be read, written or locked is done without: no method raises.
    replaces: what earlier releases kept in the cache folder instead; it goes when the file is made.
    """

    name: str
    most: int
    replaces: tuple[str, ...] = ()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are known."""
        return self._with_file(lambda connection: self._get(connection, keys), {})

    def put(self, values: Mapping[bytes, bytes]) -> None:
        """Keep values."""
        self._with_file(lambda connection: self._put(connection, values), None)

    def _get(self, connection: Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        import sqlite3

        values: dict[bytes, bytes] = {}
        old: list[tuple[int, bytes]] = []
        now = int(time.time())
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            marks = ", ".join("?" * len(some))
            rows = connection.execute(f"SELECT key, value, used FROM entries WHERE key IN ({marks})", some).fetchall()
            values |= {key: value[4:] for key, value, _ in rows if value[:4] == _check(key, value[4:])}
            old += [(now, key) for key, _, used in rows if abs(now - used) > DAY]
        if old:
            with suppress(sqlite3.OperationalError), connection:
                connection.executemany("UPDATE entries SET used = ? WHERE key = ?", old)
        return values

    def _put(self, connection: Connection, values: Mapping[bytes, bytes]) -> None:
        now = int(time.time())
        with connection:
            connection.executemany(
                "REPLACE INTO entries VALUES (?, ?, ?)",
                [(key, _check(key, value) + value, now) for key, value in values.items()],
            )
            # Counting takes a while, so only a few keys ask for it.
            if any(int.from_bytes(key[:4], "big") % max(1, self.most // 64) == 0 for key in values):
                (count,) = connection.execute("SELECT count(*) FROM entries").fetchone()
                surplus = count - self.most
                if surplus > 0:
                    oldest = "SELECT key FROM entries ORDER BY used LIMIT ?"
                    connection.execute(f"DELETE FROM entries WHERE key IN ({oldest})", [surplus + self.most // 10])

    def _with_file(self, work: Callable[[Connection], Found], otherwise: Found) -> Found:
        try:
            import sqlite3
        except ImportError:  # Python can be built without it
            return otherwise
        path = cache_folder() / self.name
        for _ in range(2):
            try:
                connection = self._connection(path)
                return otherwise if connection is None else work(connection)
            except (sqlite3.OperationalError, OSError):
                return otherwise
            except (sqlite3.Error, TypeError, ValueError):
                _forget(path)
                for end in ("", "-wal", "-shm", "-journal"):
                    with suppress(OSError):
                        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
        return otherwise

    def _connection(self, path: Path) -> Connection | None:
        """This thread's connection; None when there was none to be had."""
        opened, key = _OPENED.connections, (os.getpid(), path)
        if key not in opened:
            opened[key] = None
            opened[key] = self._open(path)
        return opened[key]

    def _open(self, path: Path) -> Connection:
        import sqlite3

        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        connection = sqlite3.connect(path, timeout=TIMEOUT_SECONDS)
        with suppress(sqlite3.OperationalError):  # another process is at it
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB, used INTEGER) WITHOUT ROWID"
        )
        if is_new:
            for name in self.replaces:
                _remove(path.parent / name)
        return connection


def _check(key: bytes, value: bytes) -> bytes:
    return zlib.crc32(key + value).to_bytes(4, "big")


def _forget(path: Path) -> None:
    connection = _OPENED.connections.pop((os.getpid(), path), None)
    if connection is not None:
        connection.close()


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where cdkit keeps what it can compute again: $CDKIT_CACHE, else the user's cache folder.

    Without a home folder that can be written to, as in many containers, it is a folder of temporary files.
    """
    chosen = os.environ.get("CDKIT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):  # no home folder at all
        folder = (Path(base) if base else Path.home() / ".cache") / "cdkit"
        if _writable(folder):
            return folder
    return Path(tempfile.gettempdir()) / f"cdkit-cache-{os.getuid()}"


def _writable(folder: Path) -> bool:
    """Whether the folder, or the nearest one above it that exists, can be written to."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


SHA256_LETTERS = 64
FINGERPRINTS = CacheFile("fingerprints.sqlite", most=50_000, replaces=("fingerprints",))


def sha256_file(path: Path | str) -> str:
    """sha256 of a local file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_fingerprint(source: SourceFile) -> str:
    """What identifies a file's content: sha256 for local files (cached), etag or size for remote ones.

    Raises InputError when the file cannot be read.
    """
    try:
        return _local_fingerprint(source) if source.is_local else _remote_fingerprint(source)
    except CdkitError:
        raise
    except Exception as error:
        raise _reading_problem(source.url, error) from error


def _local_fingerprint(source: SourceFile) -> str:
    status = os.stat(source.url)
    key = hashlib.sha256(os.fsencode(os.path.abspath(source.url))).digest()
    state = f"{status.st_size} {status.st_mtime_ns} ".encode()
    value = FINGERPRINTS.get([key]).get(key, b"")
    if value.startswith(state) and len(value) == len(state) + SHA256_LETTERS:
        return value[len(state) :].decode("ascii")
    fingerprint = sha256_file(source.url)
    after = os.stat(source.url)
    if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
        FINGERPRINTS.put({key: state + fingerprint.encode()})
    return fingerprint


def _remote_fingerprint(source: SourceFile) -> str:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(source.url)
    info = filesystem.info(path)
    for key in ("ETag", "etag", "sha256", "commit_hash", "mtime", "LastModified"):
        if info.get(key):
            return f"{key}:{info[key]}:{source.size}"
    return f"size:{source.size}"


EMBEDDED = "embedded"
REPORT_STAGE = "report"


@dataclass(frozen=True)
class Input:
    """One resolved input: what the config said, its content fingerprint, and for pool files the files.

    commits: of each `hub:USER/NAME` in the value, the commit that counts.
    """

    name: str
    kind: InputKind
    value: Any
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
    commits: Mapping[str, str] = field(default_factory=dict)


GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(states: np.ndarray) -> np.ndarray:
    """The generator's next output after each state, uint64 [n] both."""
    import numpy as np

    mixed = states + np.uint64(GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
