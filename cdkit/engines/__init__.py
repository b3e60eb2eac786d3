"""Engines: where the work of a stage runs. `local` uses processes on this machine, `ray` a cluster."""

from __future__ import annotations

import os

from cdkit.errors import ConfigError
from cdkit.protocols import Engine

ENGINES = ("local", "ray")


def create_engine(name: str, workers: int | None) -> Engine:
    """The engine called `name` with `workers` parallel workers (None: one per core; ray: the whole cluster).

    Raises MissingExtraError when ray is asked for and not installed.
    """
    if name == "local":
        from cdkit.engines.local import LocalEngine

        return LocalEngine(workers or available_cores())
    if name == "ray":
        from cdkit.engines.ray import RayEngine

        return RayEngine(workers)
    raise ConfigError(f"There is no engine called {name!r}.", hint=f"Choose one of {', '.join(ENGINES)}.")


def available_cores() -> int:
    """Cores this process may use (containers and taskset counted in)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
