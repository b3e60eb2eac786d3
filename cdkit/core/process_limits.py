"""Limits that a process sets itself before it touches what strangers sent: address space and CPU time."""

from __future__ import annotations

import resource
import time
from contextlib import suppress


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
