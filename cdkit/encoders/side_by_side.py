"""Batches side by side on a CPU, one torch thread each: a result never depends on how many threads there are.

How torch cuts one operation over threads decides the last bits of its result. Batches are independent, so the threads
go to them instead; that is also faster, because small operations gain little from being cut.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_STARTING = threading.Lock()


def batch_threads() -> ThreadPoolExecutor:
    """As many threads as torch may use here, each running its operations alone. Kept for the life of the process."""
    with _STARTING:
        return _start(torch.get_num_threads())


@cache
def _start(count: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    together = threading.Barrier(count)

    def settle(_: int) -> None:
        # A thread takes the process's number at its first look; only what is set after that is its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
    list(pool.map(settle, range(count)))
    # The number for threads to come was set with each thread's own.
    torch.set_num_threads(before)
    return pool
