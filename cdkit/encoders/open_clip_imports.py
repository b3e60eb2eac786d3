"""open_clip, or its tokenizer alone, imported without what they bring along for work that is not done here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

# timm, which open_clip builds some image towers with, imports it for the logs of its own training.
UNUSED = ("wandb",)
TOKENIZER = "open_clip.tokenizer"


def open_clip_library() -> ModuleType:
    """The whole library; takes seconds, and has timm for the towers that need it."""
    with _absent(UNUSED):
        import open_clip

    return open_clip  # type: ignore[no-any-return]


def simple_tokenizer(context_length: int) -> Any:
    """CLIP's own tokenizer as open_clip has it; its file needs nothing else of open_clip."""
    module = sys.modules.get(TOKENIZER) or _tokenizer_alone()
    return module.SimpleTokenizer(context_length=context_length)


def _tokenizer_alone() -> ModuleType:
    name = f"{__package__}._{TOKENIZER.replace('.', '_')}"
    if name not in sys.modules:
        package = importlib.util.find_spec(TOKENIZER.partition(".")[0])
        file = Path(package.origin).with_name("tokenizer.py") if package and package.origin else Path()
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise ImportError(f"open_clip has no file {file.name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """While it lasts, these modules cannot be imported, unless they have been; their importers are prepared for it."""
    kept_out = [name for name in names if name not in sys.modules]
    # An entry of None makes the import an ImportError.
    for name in kept_out:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in kept_out:
            del sys.modules[name]
