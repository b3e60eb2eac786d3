"""Quick starts: our own commands and their workers load no more of the libraries than they use.

transformers, diffusers and pyarrow load other packages because they are installed, for work that is not done here; it
takes seconds. In a notebook or a script that work may be wanted, so only processes that run nothing but our own code
do without.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Python looks for garbage every 700 new objects; imports make millions, and all of them stay.
NEW_OBJECTS = 50_000
# pyarrow, to ask whether a list is one of its columns.
REFUSED = "pandas"
# diffusers, for the noise levels of some schedulers; transformers, for losses of object detection.
LATE = ("scipy.stats", "scipy.integrate", "scipy.optimize")

_claims: list[_Refusal] = []


def claim_process() -> None:
    """Say that this process runs nothing but our own code."""
    if not _claims:
        _claims.append(_Refusal())
        gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
        sys.meta_path.insert(0, _claims[0])


def import_clip() -> None:
    """Load what CLIP models need of transformers; after it, imports from there are quick."""
    _load(_clip)


def import_pipelines() -> None:
    """Load what Stable Diffusion pipelines need of transformers and diffusers."""
    _load(_pipelines)


def _clip() -> None:
    importlib.import_module("transformers.models.clip.modeling_clip")


def _pipelines() -> None:
    _clip()
    with _distributions_unasked():
        diffusers = importlib.import_module("diffusers")
    importlib.import_module("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    # A scheduler that is made from another's settings asks for all of its kind.
    for kind in importlib.import_module("diffusers.schedulers").KarrasDiffusionSchedulers:
        getattr(diffusers, kind.name, None)


def _load(parts: Callable[[], None]) -> None:
    if not _claims:
        return
    # Whatever another version of the libraries makes of the stand-ins, it can still be imported without them.
    with suppress(Exception), _stand_ins():
        parts()
    parts()


@contextmanager
def _stand_ins() -> Iterator[None]:
    """While it lasts, imports of the late modules find stand-ins, except of those that are loaded already."""
    put = {name: _StandIn(name) for name in LATE if name not in sys.modules}
    sys.modules.update(put)
    try:
        yield
    finally:
        for name, module in put.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


@contextmanager
def _distributions_unasked() -> Iterator[None]:
    """diffusers has the file lists of all that is installed read, to learn who distributes three packages."""
    ask = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = ask


class _StandIn(ModuleType):
    """Gives functions that load the real module when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def late(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return late


class _Refusal(MetaPathFinder, Loader):
    """As if a package were not installed. It is found, though: asking for that must not raise."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == REFUSED else None
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError(f"{module.__name__} is not used here", name=module.__name__)
