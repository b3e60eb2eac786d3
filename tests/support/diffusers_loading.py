"""Loads exported files the way diffusers' own documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open
from safetensors.torch import load_file

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_embeddings(pipeline: DiffusionPipeline, out: Path) -> None:
    """Every file of `embeddings/` under its token's name, for SDXL into both text towers."""
    for path in sorted((out / "embeddings").glob("*.safetensors")):
        stored = load_file(str(path))
        if set(stored) != {"clip_l", "clip_g"}:
            pipeline.load_textual_inversion(str(path))
            continue
        with safe_open(str(path), framework="pt") as handle:
            token = handle.metadata()["cdkit_token"]
        pipeline.load_textual_inversion(stored["clip_l"], token=token)
        second = {"text_encoder": pipeline.text_encoder_2, "tokenizer": pipeline.tokenizer_2}
        pipeline.load_textual_inversion(stored["clip_g"], token=token, **second)
