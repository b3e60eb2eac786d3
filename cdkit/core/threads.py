"""How many threads libraries take, that idle ones sleep, and what a process may take of memory and time."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import ModuleType

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
