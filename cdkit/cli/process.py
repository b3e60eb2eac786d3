"""The command's process: its standard streams, whose failures are told from a full disk, and a limit on its memory."""

from __future__ import annotations

import codecs
import errno
import io
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from cdkit.core.errors import EXIT_READER_GONE, CdkitError, OutputError, ResourceError

# Half a surrogate pair in a path stands for a byte of its name; other text that UTF-8 has no letters for is escaped.
PATH_BYTES = "cdkit_path_bytes"


class ReaderGoneError(CdkitError):
    """Whoever read the output has gone (`cdkit … | head`): nothing is wrong, and nobody is left to tell."""

    code = "reader_gone"
    exit_code = EXIT_READER_GONE


class _Stream(io.FileIO):
    """A standard stream; once writing failed, what is still to come is thrown away.

    closed_before: the shell closed it, so that nothing can be written.
    """

    def __init__(self, descriptor: int, *, closed_before: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.closed_before = closed_before
        self.lost = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self.lost:
            return size
        try:
            if self.closed_before:
                raise OSError(errno.EBADF, "it is closed")
            written = super().write(data)
            while written is None:
                # Another program set the pipe to answer at once; it is full.
                select.select([], [self], [])
                written = super().write(data)
        except OSError as error:
            self.lost = True
            self.failed(error)
            return size
        return written

    def failed(self, error: OSError) -> None:
        """What a failure means: nothing, as nobody can be told that nobody can be told."""


class _Results(_Stream):
    """Standard output: a result that is not printed must not look like one that was."""

    def failed(self, error: OSError) -> None:
        if error.errno == errno.EPIPE:
            raise ReaderGoneError("The reader of the output has gone.") from error
        raise OutputError(
            f"Standard output cannot be written: {error.strerror}.",
            hint="Whatever was made is kept; run the same command again to have its result printed.",
        ) from error


def guard_streams() -> None:
    """Replace sys.stdout and sys.stderr, and keep the numbers of closed streams from being given to other files."""
    codecs.register_error(PATH_BYTES, _path_bytes)
    closed = {descriptor for descriptor in range(3) if not _is_open(descriptor)}
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)
    sys.stdout = _text(_Results(1, closed_before=1 in closed), sys.stdout)
    sys.stderr = _text(_Stream(2, closed_before=2 in closed), sys.stderr)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text(raw: _Stream, replaced: Any) -> io.TextIOWrapper:
    encoding = getattr(replaced, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, PATH_BYTES, line_buffering=raw.isatty())


def _path_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escaped = b""
    for letter in error.object[error.start : error.end]:
        is_byte = 0xDC80 <= ord(letter) <= 0xDCFF
        escaped += letter.encode("utf-8", "surrogateescape") if is_byte else letter.encode("ascii", "backslashreplace")
    return escaped, error.end


def memory_is_limited() -> bool:
    """Whether `ulimit -v` is set."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def run_watched(command: Callable[[], int]) -> int:
    """The exit code of `command`, run in a process of its own.

    Raises ResourceError when that process came to another end: a crash, or an exit that a library took upon itself.
    """
    said, saying = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(said)
        code = command()
        # What libraries do at exit is no part of the command any more.
        os.write(saying, bytes([code]))
        sys.exit(code)
    os.close(saying)
    # ctrl-C reaches both from the terminal, and the child says what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    # What else holds the pipe's other end says nothing.
    os.set_blocking(said, False)
    with os.fdopen(said, "rb") as pipe:
        reported = pipe.read(1)
    code = reported[0] if reported else os.waitstatus_to_exitcode(status)
    if reported or code in (-signal.SIGKILL, -signal.SIGTERM):
        return code if code >= 0 else 128 - code
    limit = resource.getrlimit(resource.RLIMIT_AS)[0] >> 10
    raise ResourceError(
        f"A library ended the command for want of memory (ulimit -v is {limit}; exit code {code}).",
        hint="Raise ulimit -v, to 16000000 for example: libraries take address space that they never use. Finished "
        "work is kept.",
    )
