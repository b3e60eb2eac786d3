"""A command under a limit on address space: libraries in C end the process there without raising anything."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable

from cdkit.core.errors import ResourceError


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
