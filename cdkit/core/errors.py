"""Typed errors: what happened, what to do next, the exit code; and what a system's own errors mean for a run."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# PyPI's `cdkit` is somebody else's library: what pip installs has another name than what Python imports.
DISTRIBUTION = "custom-diffusion-kit"
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
# What a shell says of a program that writes to a pipe nobody reads: 128 and the number of SIGPIPE.
EXIT_READER_GONE = 141


def pip_install(extra: str = "", *, upgrade: bool = False) -> str:
    """The shell command that installs this package: with an optional extra, or its newest version."""
    option = "--upgrade " if upgrade else ""
    return f"pip install {option}" + (f"'{DISTRIBUTION}[{extra}]'" if extra else DISTRIBUTION)


class CdkitError(Exception):
    """Base of every error a user can meet: a message, a hint, a stable code and an exit code."""

    code = "bug"
    exit_code = EXIT_BUG

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries; the default reduction would lose the keyword-only hint.
        return _rebuild, (type(self), self.message, self.__dict__.copy())


def _rebuild(kind: type[CdkitError], message: str, state: dict[str, object]) -> CdkitError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class ConfigError(CdkitError):
    """Wrong usage or configuration; `problems` lists every mistake found, not only the first."""

    code = "configuration"
    exit_code = 2

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str = "") -> None:
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in problems)]), hint=hint)
        self.problems = list(problems)


class ResourceError(ConfigError):
    """These settings need more memory, threads or open files than the machine, or a limit set on it, allows."""

    code = "resources"


class InputError(CdkitError):
    """An input is missing, unreadable or not what it should be."""

    code = "input"
    exit_code = 3


class MissingExtraError(CdkitError):
    """An optional dependency is not installed."""

    code = "missing_extra"
    exit_code = 4

    def __init__(self, what: str, *, extra: str) -> None:
        super().__init__(
            f"{what} needs the optional dependency {DISTRIBUTION}[{extra}], which is not installed.",
            hint=pip_install(extra),
        )


class MissingLibraryError(CdkitError):
    """A library that no extra of ours names is not installed."""

    code = "missing_library"
    exit_code = 4

    def __init__(self, what: str, *, library: str) -> None:
        super().__init__(f"{what} needs {library}, which is not installed.", hint=f"pip install {library}")


class PartialError(CdkitError):
    """Less was found than asked for; what was found is kept."""

    code = "partial"
    exit_code = 5


class NetworkError(CdkitError):
    """The network or a model hub failed."""

    code = "network"
    exit_code = 6


class OutputError(CdkitError):
    """The output folder holds something else, is in use, or cannot be written."""

    code = "output"
    exit_code = 7


_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_TEXT = re.compile(r"no space left|disk quota|disk full|\(os error (28|122)\)", re.IGNORECASE)
_DENIED_TEXT = re.compile(r"read-only file system|permission denied|\(os error (13|30)\)", re.IGNORECASE)
_LARGE_TEXT = re.compile(r"file too large|\(os error 27\)", re.IGNORECASE)
_OPEN_FILES_TEXT = re.compile(r"too many open files|\(os error (23|24)\)", re.IGNORECASE)
_MEMORY_TEXT = re.compile(
    r"\bMemoryError\b|(can'?t|cannot|could not|failed to|unable to) (allocate|map|mmap|reserve|start new thread)"
    r"|(out of|not enough|insufficient) memory|std::bad_alloc|thread creation failed|pthread_create"
    r"|failed to (create|start|spawn) (a )?(new )?thread|\(os error 12\)",
    re.IGNORECASE,
)
# Their names, so that the libraries need not be there.
_MEMORY_TYPES = frozenset({"OutOfMemoryException", "OutOfMemoryError", "ArrowMemoryError"})
_LONGEST = 120


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses a run that writes under `path` into an error of ours."""
    try:
        yield
    except CdkitError:
        raise
    except Exception as error:
        problem = system_problem(error, path)
        if problem is None:
            raise
        raise problem from error


def system_problem(error: BaseException, path: Path | None) -> CdkitError | None:
    """What `error`, or what it was raised from, means for a run that writes to `path`; None when it is no such thing.

    path: None when nothing is known to be written.
    """
    for cause in causes(error):
        problem = shortage(cause) or write_problem(cause, path)
        if problem is not None:
            return problem
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        near = error.object[max(0, error.start - 40) : error.end + 40]
        return InputError(
            f"A name or text has bytes that are not UTF-8: {near!a}.",
            hint="Rename the file or folder, or give a link to it that has another name.",
        )
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return NetworkError(f"The network failed: {error}", hint="Check the connection and run it again.")
    return _file_problem(error, path) if isinstance(error, OSError) and error.errno is not None else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling, outermost first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def shortage(error: BaseException) -> ResourceError | None:
    """Too little memory, too many threads or open files, for this machine or for a limit set on it."""
    code, text = getattr(error, "errno", None), _first_line(error)
    if code in (errno.EMFILE, errno.ENFILE) or _OPEN_FILES_TEXT.search(text):
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ResourceError(
            f"Too many files are open at once (ulimit -n is {most}).",
            hint="Raise the limit, for example with ulimit -n 4096, or use fewer --workers; finished work is kept.",
        )
    is_memory = isinstance(error, MemoryError) or type(error).__name__ in _MEMORY_TYPES
    # EAGAIN is what starting a process says; of a file it is never raised here.
    if not (is_memory or code in (errno.ENOMEM, errno.EAGAIN) or _MEMORY_TEXT.search(text)):
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    limited = f" (ulimit -v is {limit >> 10})" if limit != resource.RLIM_INFINITY else ""
    said = f": {text}" if text else ""
    return ResourceError(
        f"There is not enough memory for this, or for another thread or process{limited}{said}.",
        hint="Use fewer --workers or --threads, or what makes the work smaller (--batch-size, --resolution, "
        "--memory-gib); raise ulimit -v where it is set. Finished work is kept.",
    )


def write_problem(error: BaseException, path: Path | None) -> OutputError | None:
    """What stands in the way of writing: a full disk, a limit on the size of files, no permission."""
    code, text = getattr(error, "errno", None), _first_line(error)
    place = _place(error, path)
    if code in _FULL or _FULL_TEXT.search(text):
        return OutputError(
            f"The disk is full while writing to {place}.",
            hint="Free some space and run the same command again: finished shards are kept.",
        )
    if code == errno.EFBIG or _LARGE_TEXT.search(text):
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = f"ulimit -f is {most >> 10} kB" if most != resource.RLIM_INFINITY else "by its file system"
        return OutputError(
            f"A file became larger than it may ({limit}) while writing to {place}.",
            hint="Raise the limit with ulimit -f unlimited, or write elsewhere; finished shards are kept.",
        )
    if code in _DENIED or _DENIED_TEXT.search(text):
        # A file that may not be read raises the same; a file system that takes nothing does so in writing only.
        if code != errno.EROFS and not _concerns(error, path):
            return None
        return OutputError(f"Cannot write to {place}: {text}.", hint="Check the permissions, or choose another --out.")
    return None


def _file_problem(error: OSError, path: Path | None) -> CdkitError | None:
    """An error of one file: of the output where it lies there, else of something that was to be read."""
    if error.filename is None:
        hint = "Choose another --out."
        return OutputError(f"Cannot write to {path}: {error.strerror}.", hint=hint) if path is not None else None
    name, why = _shown(error.filename), error.strerror or os.strerror(error.errno or 0)
    if path is not None and _concerns(error, path):
        return OutputError(f"Cannot write to {name}: {why}.", hint="Choose another --out, or a shorter name for it.")
    return InputError(f"{name} cannot be used: {why}.", hint="Check the path and the permissions.")


def _concerns(error: BaseException, path: Path | None) -> bool:
    """Whether an error is about the output folder: about itself, what is in it, or what it is to be made in."""
    named = getattr(error, "filename", None)
    if named is None or path is None or isinstance(named, int):
        return True
    file, folder = _absolute(os.fsdecode(named)), _absolute(path)
    # What is to become a file is written beside it first, under a name that ends in its own.
    is_made = file.parent == folder.parent and file.name.startswith(".") and file.name.endswith(folder.name)
    return file == folder or folder in file.parents or file in folder.parents or is_made


def _place(error: BaseException, path: Path | None) -> str:
    """Where writing failed: the output, or the file that the error names elsewhere."""
    named = getattr(error, "filename", None)
    if path is None:
        return _shown(named) if isinstance(named, str | bytes) else "a file"
    if not isinstance(named, str | bytes):
        return str(path)
    is_above = _absolute(os.fsdecode(named)) in _absolute(path).parents
    return str(path) if _concerns(error, path) and not is_above else _shown(named)


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))


def _shown(name: str | bytes | int) -> str:
    text = name if isinstance(name, str) else os.fsdecode(name) if isinstance(name, bytes) else f"file {name}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _first_line(error: BaseException) -> str:
    """What the error says, without what a file said: a parser quotes that below its own words."""
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return line if len(line) <= 2 * _LONGEST else f"{line[: 2 * _LONGEST - 1]}…"
