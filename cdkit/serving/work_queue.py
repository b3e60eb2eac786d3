"""The queue before the searches: as many run at once as there are threads, some wait, and the others are sent away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

Answer = TypeVar("Answer")
# Share of the newest request in the running mean of what one takes.
NEWEST = 0.1
LONGEST_RETRY_SECONDS = 60


class BusyError(Exception):
    """Refusal of a request beside too many; retry_after: seconds after which there should be room again."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many requests at once: try again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass
class WorkQueue:
    """Runs blocking work for one event loop on `threads`; at most `longest` requests wait or run at a time."""

    threads: int
    longest: int
    pending: int = 0
    refused: int = 0
    mean_seconds: float = 0.1
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="search")

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """What `work` returns; raises BusyError at once where the queue is full, and what `work` raises."""
        if self.pending >= self.longest:
            self.refused += 1
            raise BusyError(self.retry_after())
        self.pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, self._timed, work)
        finally:
            self.pending -= 1

    def retry_after(self) -> int:
        """Whole seconds until those who wait now should be done."""
        seconds = math.ceil(self.pending * self.mean_seconds / self.threads)
        return min(max(1, seconds), LONGEST_RETRY_SECONDS)

    def _timed(self, work: Callable[[], Answer]) -> Answer:
        started = time.monotonic()
        try:
            return work()
        finally:
            self.mean_seconds += NEWEST * (time.monotonic() - started - self.mean_seconds)

    def close(self) -> None:
        """Finish what runs, drop what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
