"""cdkit: teach a text-to-image model a new concept from a few photos, the Custom Diffusion way.

The functions below are what a script or a notebook calls. Each runs one stage, and returns what it made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cdkit.core.threads import wait_passively

if TYPE_CHECKING:
    from cdkit.api.drawing import evaluate, make_report, sample
    from cdkit.api.finding import build_index, retrieve, search
    from cdkit.api.progress import ProgressEvent
    from cdkit.api.results import load
    from cdkit.api.teaching import merge, train
    from cdkit.core.errors import CdkitError

__version__ = "0.1.0"
__all__ = [
    "CdkitError",
    "ProgressEvent",
    "build_index",
    "evaluate",
    "load",
    "make_report",
    "merge",
    "retrieve",
    "sample",
    "search",
    "train",
]

# Where each is, loaded when it is asked for: `import cdkit` alone loads none of them.
_PLACES = {
    **dict.fromkeys(("evaluate", "make_report", "sample"), "cdkit.api.drawing"),
    **dict.fromkeys(("build_index", "retrieve", "search"), "cdkit.api.finding"),
    **dict.fromkeys(("merge", "train"), "cdkit.api.teaching"),
    **{"load": "cdkit.api.results", "ProgressEvent": "cdkit.api.progress", "CdkitError": "cdkit.core.errors"},
}

# Before anything loads torch or FAISS: their OpenMP reads it once.
wait_passively()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cdkit' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
