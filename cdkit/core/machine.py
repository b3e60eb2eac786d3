"""This machine: its CPUs and threads, the device a model runs on, what a process may take and what it took."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError

if TYPE_CHECKING:
    import torch

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


def cpu_count() -> int:
    """CPUs this process may use: those of its affinity (taskset, containers), no more than its cgroups' quota."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return there if quota is None else max(1, min(there, math.ceil(quota)))


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


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroups of this process, version 1 or 2, may use together; None without a limit."""
    quotas = []
    for folder, top in _cpu_groups(root):
        # A limit of any group above counts too. In a container, the group's own path may be the host's.
        for group in (folder, *folder.parents):
            quotas.append(_quota(root / group.relative_to("/")))
            if group == top:
                break
    return min((quota for quota in quotas if quota), default=None)


def _cpu_groups(root: Path) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """The folders of this process' cgroups that account for CPUs, and the mount points they lie under."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for mount in mounts:
        with suppress(ValueError, IndexError):
            kind, options = mount[mount.index("-", 6) + 1], mount[-1].split(",")
            if kind == "cgroup2":
                paths = [path for _, controllers, path in groups if not controllers]
            elif kind == "cgroup" and "cpu" in options:
                paths = [path for _, controllers, path in groups if "cpu" in controllers.split(",")]
            else:
                continue
            top = PurePosixPath(mount[4])
            for path in paths:
                inside = PurePosixPath(path)
                yield (top / inside.relative_to(mount[3]) if inside.is_relative_to(mount[3]) else top), top


def _quota(group: Path) -> float | None:
    """The limit of one cgroup, in CPUs."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            allowed, period = " ".join((group / name).read_text() for name in names).split()
            # "max" and -1 stand for no limit.
            return float(allowed) / float(period) if allowed.isdecimal() and float(period) > 0 else None
    return None


def limit_memory(beyond: int) -> None:
    """Let this process have `beyond` bytes of address space more than now; what exceeds it is a MemoryError."""
    import psutil

    # macOS knows no such limit; there only sizes are bounded.
    with suppress(ValueError, OSError, AttributeError):
        set_before = resource.getrlimit(resource.RLIMIT_AS)
        most = psutil.Process().memory_info().vms + beyond
        # Never more than whoever started this process allowed.
        least = min([most, *(limit for limit in set_before if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_AS, (least, set_before[1]))


def limit_time(seconds: int) -> None:
    """End this process by SIGXCPU after so many more seconds of CPU time; no core is dumped."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    # Counted in whole seconds of the process.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def choose_device(device: str | None = None) -> torch.device:
    """The device named; for None or `auto` CUDA, else Apple's, else the CPU.

    Raises ConfigError for one that is not there, or on which nothing can be computed.
    """
    import torch

    if device in (None, "auto"):
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(str(device))
        # `meta` is a device to torch, but has no numbers.
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"There is no device {device!r} here: {reason}",
            hint="Write cpu, cuda, cuda:0 or mps, or leave it out; cdkit doctor lists what this machine has.",
        ) from error
    return chosen


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
