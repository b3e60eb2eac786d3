"""What identifies content: fingerprints of files, and the inputs of a stage with theirs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.cache_file import CacheFile
from cdkit.core.config import InputKind
from cdkit.core.errors import CdkitError
from cdkit.core.storage import SourceFile, _reading_problem

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
    """One resolved input: what the config said, its content fingerprint, and for pool files the files."""

    name: str
    kind: InputKind
    value: Any
    fingerprint: str
    files: tuple[SourceFile, ...] = ()
