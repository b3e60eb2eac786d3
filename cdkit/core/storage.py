"""Files on disk: atomic writes, JSON, CSV and lines, folder locks, and input expansion over fsspec."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import CdkitError, InputError, NetworkError, OutputError, shortage, writing
from cdkit.core.file_kinds import require_file
from cdkit.core.formatting import json_text

TEMPORARY_PREFIX = ".tmp-"
LOCK_NAME = ".lock"
# A file's temporary name is longer than its own, which may be as long as a name can be.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Folder:
    """A local output folder; writes inside it are atomic."""

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def sub(self, name: str) -> Folder:
        """A folder inside this one, created when missing."""
        (self.path / name).mkdir(parents=True, exist_ok=True)
        return Folder(self.path / name)

    def entries(self) -> list[str]:
        """Names inside the folder that are not our own lock or left-over temporaries; empty when it does not exist."""
        if not self.path.exists():
            return []
        if not self.path.is_dir():
            raise OutputError(f"{self.path} is a file, not a folder.", hint="Choose another --out.")
        names = sorted(entry.name for entry in self.path.iterdir())
        return [name for name in names if name != LOCK_NAME and not name.startswith(TEMPORARY_PREFIX)]

    def remove(self, names: Iterable[str]) -> None:
        """Delete the named entries, whole folders included; missing ones are fine."""
        for name in names:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)

    def remove_temporaries(self, *, below: bool = True) -> None:
        """Delete what a killed run left half-written, `below` what lies in the folders inside, too."""
        for path in (self.path.rglob if below else self.path.glob)(f"{TEMPORARY_PREFIX}*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one run; the kernel releases it however the process ends.

        Raises OutputError when another process holds it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / LOCK_NAME, "a+", encoding="utf-8")  # noqa: SIM115 - held past this block
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            handle.close()
            raise OutputError(
                f"Another run (process {owner}) is using {self.path}.",
                hint="Wait until it ends, or choose another --out.",
            ) from error
        try:
            # The owner is only for the other run's message, so a full disk must not stop this one here.
            with suppress(OSError):
                handle.truncate(0)
                handle.write(str(os.getpid()))
                handle.flush()
            yield
        finally:
            handle.close()


@contextmanager
def waiting_for(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block for the folder, and keep others out; short steps only.

    Apart from Folder.lock. Where the file system knows no locks on folders, nobody waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Delete what killed programs had not finished writing of one file, and keep others from writing it meanwhile.

    For files that stand by themselves; in a folder that a run holds, Folder.remove_temporaries does it for all.
    """
    with waiting_for(path.parent):
        for litter in path.parent.glob(f"{TEMPORARY_PREFIX}*-{glob.escape(_short(path.name))}"):
            litter.unlink(missing_ok=True)
        yield


def _short(name: str) -> str:
    """A file's own name, or what stands for a long one in the name of its temporary."""
    whole = os.fsencode(name)
    return name if len(whole) <= LONGEST_NAME else hashlib.sha256(whole).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path (file or folder) beside `path`; flushed and renamed on success, removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{_short(path.name)}"
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have a file, or a folder with all that is in it, on the disk: a power loss takes none of it any more."""
    if path.is_dir():
        for entry in path.iterdir():
            if not entry.is_symlink():
                flush(entry)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_names(folder: Path, *, below: bool = True) -> None:
    """Have the names in a folder on the disk, `below` those in its folders too, and its own in the folders above.

    A power loss then undoes no renaming or deletion from before, and keeps none from after it without these.
    """
    inside = [Path(place) for place, _, _ in os.walk(folder)] if below else [folder]
    # From above: what is renamed into a new folder must not be on the disk before the folder's own name is.
    for place in (folder.parent.parent, folder.parent, *inside):
        # Folders above need not be ours to read, and some file systems flush no folders.
        with suppress(PermissionError, FileNotFoundError):
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
            finally:
                os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in the order given."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises InputError when it is missing or not JSON."""
    require_file(path)
    try:
        # Files of an earlier cdkit may hold NaN, which says that nothing is known.
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}", hint="The file may be truncated.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; raises InputError when it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="It must be a UTF-8 text file.") from error


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV atomically, the names of its columns first."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])


@dataclass(frozen=True)
class SourceFile:
    """One input file: an fsspec URL (plain paths for local files), its name and its size in bytes.

    collection: a table that cdkit made of a folder of pictures, whose URLs may lead to files of this machine.
    """

    url: str
    name: str
    size: int
    collection: bool = False

    @property
    def is_local(self) -> bool:
        return "://" not in self.url


def find_files(patterns: Sequence[str], suffixes: Sequence[str]) -> list[SourceFile]:
    """Expand files, folders, globs and fsspec URLs into files: patterns in the order given, matches sorted by name.

    In a folder only files ending in one of `suffixes` count. Raises InputError for a pattern that matches nothing.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        for source in _expand(pattern, suffixes):
            found.setdefault(source.url, source)
    return list(found.values())


def _expand(pattern: str, suffixes: Sequence[str]) -> list[SourceFile]:
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        filesystem, path = fsspec.core.url_to_fs(pattern)
        local = isinstance(filesystem, LocalFileSystem)
        if filesystem.isfile(path):
            matches = [path]
        elif filesystem.isdir(path):
            matches = [name for name in filesystem.find(path) if _is_data(name, path, suffixes)]
        elif _is_glob(path):
            matches = [name for name in filesystem.glob(path) if not filesystem.isdir(name)]
        else:
            matches = [path] if local and os.path.lexists(path) else []
        sources = []
        for name in sorted(matches):
            if local:
                require_file(Path(name))
            url = str(name) if local else filesystem.unstrip_protocol(name)
            # What follows a question mark in a web address may be a key to it, and the name is kept with every row.
            path = str(name) if local else str(name).partition("?")[0]
            sources.append(SourceFile(url=url, name=path.rsplit("/", 1)[-1], size=int(filesystem.size(name) or 0)))
    except CdkitError:
        raise
    except Exception as error:
        raise _reading_problem(pattern, error) from error
    if not sources:
        raise InputError(
            f"{pattern} matches no input file.",
            hint=f"Give files, folders or globs of files ending in {', '.join(suffixes)}, or a folder of pictures.",
        )
    return sources


def _reading_problem(url: str, error: Exception) -> CdkitError:
    """What a failure to find or look at a file means; every driver of fsspec has errors of its own."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, ImportError) or said.startswith("Protocol not known"):
        return InputError(f"{url}: {said}", hint="Install the fsspec driver for this kind of URL.")
    remote, answered = "://" in url, isinstance(error, FileNotFoundError | PermissionError)
    if remote and isinstance(error, OSError | TimeoutError) and not answered:
        return NetworkError(f"{url} cannot be fetched: {said}", hint="Check the address and the connection.")
    hint = "Check the address." if remote else "Check the path and the permissions."
    return shortage(error) or InputError(f"{url} cannot be read: {said}", hint=hint)


def _is_glob(path: str) -> bool:
    return any(character in path for character in "*?[")


def _is_data(name: str, root: str, suffixes: Sequence[str]) -> bool:
    """Hidden files and folders (`.cache`, `_temporary`) inside a data folder are never data."""
    relative = name[len(root) :].strip("/")
    hidden = any(part.startswith((".", "_")) for part in relative.split("/"))
    return not hidden and name.lower().endswith(tuple(suffixes))
