"""Quick starts: our own commands and their workers load no more of the libraries than they use.

transformers, diffusers and pyarrow load other packages because they are installed, for work that is not done here; it
takes seconds. In a notebook or a script that work may be wanted, so only processes that run nothing but our own code
do without.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from cdkit.core.stand_ins import put_off_compiler, stand_ins

# Python looks for garbage every 700 new objects; imports make millions, and all of them stay.
NEW_OBJECTS = 50_000
# pyarrow, to ask whether a list is one of its columns.
REFUSED = "pandas"
# For the noise levels of some schedulers; for losses of object detection; for weights that are spread over devices;
# for attention that is compiled; for models and data sets of torchvision.
LATE = (
    *("scipy.stats", "scipy.integrate", "scipy.optimize"),
    *("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
    *("transformers.distributed.expert_parallel", "transformers.distributed.tensor_parallel"),
    *("torch.distributed._composable", "torch.nn.attention.flex_attention"),
    *("torchvision.models", "torchvision.datasets", "torchvision.io"),
    *("torch._dynamo._trace_wrapped_higher_order_op", "torch._dynamo.utils"),
)

# diffusers, for LoRA layers: deltas are not applied by it.
UNUSED = "peft"
# transformers' function that lists a folder of its own by what is in the files.
LISTING = "create_import_structure_from_path"

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


def import_vision() -> None:
    """Load torchvision, which open_clip needs."""
    _load(_vision)


def _vision() -> None:
    importlib.import_module("torchvision")


def _clip() -> None:
    with _models_listed_once():
        importlib.import_module("transformers.models")
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
    importlib.import_module("torch")
    put_off_compiler()
    # Whatever another version of the libraries makes of the stand-ins, it can still be imported without them.
    with suppress(Exception), stand_ins(LATE):
        parts()
    parts()


@contextmanager
def _models_listed_once() -> Iterator[None]:
    """transformers reads the start of each of its files twice: for the folder of its models, and for a file in it."""
    listing = importlib.import_module("transformers.utils.import_utils")
    read = getattr(listing, LISTING, None)
    if read is None:
        yield
        return

    def of_folder(path: Any) -> Any:
        return read(Path(path).parent if os.path.isfile(path) else path)

    setattr(listing, LISTING, of_folder)
    try:
        yield
    finally:
        setattr(listing, LISTING, read)


@contextmanager
def _distributions_unasked() -> Iterator[None]:
    """diffusers has the file lists of all that is installed read, to learn who distributes three packages.

    While it lasts, nobody is told either that a package is there which is not used.
    """
    ask, find = importlib.metadata.packages_distributions, importlib.util.find_spec
    importlib.metadata.packages_distributions = dict
    importlib.util.find_spec = lambda name, package=None: None if name == UNUSED else find(name, package)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions, importlib.util.find_spec = ask, find


class _Refusal(MetaPathFinder, Loader):
    """As if a package were not installed. It is found, though: asking for that must not raise."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == REFUSED else None
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError(f"{module.__name__} is not used here", name=module.__name__)
