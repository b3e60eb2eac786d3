"""The base model with the delta baked in: a diffusers pipeline folder that anything can load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cdkit.core.devices import choose_device
from cdkit.core.errors import InputError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.base_model import load_base_model
from cdkit.deltas.delta import Delta


def write_pipeline(
    delta: Delta, base: str, folder: Path, *, scale: float, half: bool, note: Callable[[str], None]
) -> None:
    """Save the base with the delta's weights added and its tokens in the tokenizers."""
    import torch

    pipeline = load_base_model(base, device=choose_device("cpu"))
    apply_deltas(pipeline, [delta], scale=scale, note=note)
    if half:
        pipeline.to(dtype=torch.float16)
    _check_finite(pipeline)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _check_finite(pipeline: Any) -> None:
    for component in ("unet", "text_encoder", "text_encoder_2"):
        model = getattr(pipeline, component, None)
        for name, value in model.named_parameters() if model is not None else ():
            if not value.isfinite().all():
                raise InputError(f"{component}.{name} does not fit into fp16.", hint="Leave out --precision fp16.")
