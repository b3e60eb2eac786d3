"""Threads: how many libraries use here, that idle ones sleep, and a pool whose threads never wait for each other."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from cdkit.core.machine import cpu_count

# OpenMP's threads wait for each other awake unless told otherwise. Beside other busy processes, those they wait for
# have no CPU to run on: a training takes forty times as long. Asleep, one costs microseconds per operation.
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
WAITING = (*PASSIVE, "GOMP_SPINCOUNT")
# What libraries take their number of threads from when they are loaded; Arrow and FAISS read OpenMP's.
OPENMP = "OMP_NUM_THREADS"
NUMBERS = (OPENMP, "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS")


def wait_passively() -> None:
    """Let idle threads of OpenMP sleep, in this process if no OpenMP is loaded yet, and in those it starts.

    What the user has set stays.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ.update(PASSIVE)


def thread_count(*, small: bool = False) -> int:
    """Threads a library is to use here: $OMP_NUM_THREADS, else one where the work is `small`, else one per CPU."""
    # OpenMP allows a number for every level of nesting: 4,2.
    asked = os.environ.get(OPENMP, "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return int(asked)
    return 1 if small else cpu_count()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run libraries of this process, loaded before or inside the block, and processes it starts on `count` threads."""
    counts = {name: look() for name, look, _ in _loaded()}
    try:
        with environment(dict.fromkeys(NUMBERS, str(count))):
            set_threads(count)
            yield
    finally:
        for name, _, put in _loaded():
            put(counts.get(name) or thread_count())


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, which processes it starts inherit, and put back what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def set_threads(count: int) -> None:
    """Run libraries of this process, and processes it starts, on `count` threads from now on."""
    os.environ.update(dict.fromkeys(NUMBERS, str(count)))
    for _, _, put in _loaded():
        put(count)


def _loaded() -> Iterator[tuple[str, Callable[[], int], Callable[[int], None]]]:
    """Libraries that are loaded, with how their number of threads is read and set."""
    calls = {
        "torch": ("get_num_threads", "set_num_threads"),
        "faiss": ("omp_get_max_threads", "omp_set_num_threads"),
        "pyarrow": ("cpu_count", "set_cpu_count"),
    }
    for name, (look, put) in calls.items():
        module: ModuleType | None = sys.modules.get(name)
        # A module that is being imported is there before its functions are.
        if hasattr(module, look) and hasattr(module, put):
            yield name, getattr(module, look), getattr(module, put)


_STARTING = threading.Lock()


def separate_threads() -> ThreadPoolExecutor:
    """As many threads as torch may use here, each running its operations alone. Kept for the life of the process.

    Threads that share no operation never wait for each other, which is what costs where other programs run too.
    """
    import torch

    with _STARTING:
        return _start(torch.get_num_threads())


@cache
def _start(count: int) -> ThreadPoolExecutor:
    import torch

    before = torch.get_num_threads()
    together = threading.Barrier(count)

    def settle(_: int) -> None:
        # A thread takes the process's number at its first look; only what is set after that is its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="separate")
    list(pool.map(settle, range(count)))
    # The number for threads to come was set with each thread's own.
    torch.set_num_threads(before)
    return pool
