"""The peak of memory: of one piece of work, not the largest of all that ran before it in the process."""

from __future__ import annotations

import re
import resource
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

SAMPLE_SECONDS = 1.0
PROC = Path("/proc")
_HIGH_WATER = re.compile(rb"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


class PeakMemory:
    """Measures what is done inside `with`; `bytes` is then the peak of one process, None where it cannot be known.

    Linux keeps a high-water mark for every process; this one's is set back at the start, and those of the processes
    that are started meanwhile are looked at every second. Elsewhere resident memory is looked at instead.
    """

    def __init__(self) -> None:
        self.bytes: int | None = None
        self._own_mark = False
        self._before: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="peak-memory")
        self._children_before = 0

    def __enter__(self) -> PeakMemory:
        with suppress(OSError):
            (PROC / "self" / "clear_refs").write_text("5")
            self._own_mark = _high_water("self") is not None
        self._children_before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        with suppress(Exception):
            self._before = {child.pid for child in _children()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        # The mark of the largest child that has ended: only when it rose, it rose here.
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        if children > self._children_before:
            self._note(children * (1 if sys.platform == "darwin" else 1024))

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        # Whatever cannot be looked at (no psutil, a child that has just ended) is not counted.
        with suppress(Exception):
            self._note(_high_water("self") if self._own_mark else _resident())
        with suppress(Exception):
            for child in _children():
                with suppress(Exception):
                    mark = None if child.pid in self._before else _high_water(str(child.pid))
                    self._note(mark if mark is not None else child.memory_info().rss)

    def _note(self, number: int | None) -> None:
        if number is not None:
            self.bytes = max(self.bytes or 0, number)


def _children() -> list[Any]:
    import psutil

    return list(psutil.Process().children(recursive=True))


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _high_water(process: str) -> int | None:
    """VmHWM in bytes; None where there is no such thing."""
    try:
        mark = _HIGH_WATER.search((PROC / process / "status").read_bytes())
    except OSError:
        return None
    return int(mark[1]) * 1024 if mark else None
