"""Engines: where the work of a stage runs. `local` uses processes on this machine, `ray` a cluster."""

from __future__ import annotations

from cdkit.core.errors import ConfigError
from cdkit.core.machine import cpu_count
from cdkit.core.protocols import Engine

ENGINES = ("local", "ray")


def create_engine(name: str, workers: int | None) -> Engine:
    """The engine called `name` with `workers` parallel workers (None: one per CPU; ray: the whole cluster).

    Raises MissingExtraError when ray is asked for and not installed.
    """
    if name == "local":
        from cdkit.engines.local import LocalEngine

        return LocalEngine(workers or cpu_count())
    if name == "ray":
        from cdkit.engines.ray import RayEngine

        return RayEngine(workers)
    raise ConfigError(f"There is no engine called {name!r}.", hint=f"Choose one of {', '.join(ENGINES)}.")
