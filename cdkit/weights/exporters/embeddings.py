"""Textual-inversion files: one per modifier token, named after it."""

from __future__ import annotations

from pathlib import Path

from cdkit.weights.delta import Delta
from cdkit.weights.exporters.names import file_stems, header
from cdkit.weights.tensor_file import write_tensors

# SDXL's towers by the names that embeddings for it use.
XL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def write_embeddings(delta: Delta, folder: Path, *, half: bool) -> dict[str, Path]:
    """Write `{token: rows (n, width)}`, for SDXL `{clip_l: …, clip_g: …}`; returns each token's file."""
    written: dict[str, Path] = {}
    stems = file_stems(token.text for token in delta.tokens)
    for token in delta.tokens:
        path = folder / f"{stems[token.text]}.safetensors"
        if set(token.rows) == {"text_encoder"}:
            tensors = {token.text: token.rows["text_encoder"]}
        else:
            tensors = {XL_KEYS[name]: rows for name, rows in token.rows.items()}
        facts = {"cdkit_token": token.text, "cdkit_initializer": token.initializer}
        write_tensors(path, tensors, header(delta, **facts), half=half)
        written[token.text] = path
    return written
