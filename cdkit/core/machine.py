"""This machine: the CPUs there are to use, the device a model runs on, and what a process may take."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cdkit.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


def cpu_count() -> int:
    """CPUs this process may use: those of its affinity (taskset, containers), no more than its cgroups' quota."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return there if quota is None else max(1, min(there, math.ceil(quota)))


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
