"""The small text-to-image model and CLIP that ship with the package, and the rendered world they were trained on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cdkit.embedded.concepts import concept_captions, concept_names, concept_photos, write_concept
    from cdkit.embedded.models import load_clip, load_pipeline
    from cdkit.embedded.pool import PoolServer, write_pool
    from cdkit.embedded.weight_files import default_threshold, text_encoder_hash, weights_hash

# Another number whenever a seed means another scene or caption: pools kept in a cache are then written anew.
WORLD_EDITION = 2

__all__ = [
    "WORLD_EDITION",
    "PoolServer",
    "concept_captions",
    "concept_names",
    "concept_photos",
    "default_threshold",
    "load_clip",
    "load_pipeline",
    "text_encoder_hash",
    "weights_hash",
    "write_concept",
    "write_pool",
]

_HOMES = {
    "PoolServer": "pool",
    "concept_captions": "concepts",
    "concept_names": "concepts",
    "concept_photos": "concepts",
    "default_threshold": "weight_files",
    "load_clip": "models",
    "load_pipeline": "models",
    "text_encoder_hash": "weight_files",
    "weights_hash": "weight_files",
    "write_concept": "concepts",
    "write_pool": "pool",
}


def __getattr__(name: str) -> Any:
    # Importing this package must not import torch or diffusers: most commands never load the model.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
