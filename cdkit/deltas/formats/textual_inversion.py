"""Textual-inversion files: one per modifier token, named after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.shards import write_tensors
from cdkit.deltas.delta import Delta
from cdkit.deltas.formats.names import file_stems, header
from cdkit.deltas.formats.reading import Contents, Found, make_token

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


KIND = "textual-inversion"


def is_embedding(contents: Contents) -> bool:
    """Whether the file holds nothing but embeddings of words."""
    values = contents.values
    if "string_to_param" in values or "emb_params" in values or set(values) == set(XL_KEYS.values()):
        return True
    few = 0 < len(values) <= 64
    return few and all(
        hasattr(value, "ndim") and value.ndim in (1, 2) and not key.endswith((".weight", ".bias", ".diff"))
        for key, value in values.items()
    )


def read_embedding(contents: Contents) -> Found:
    """`{token: rows}`, A1111's `{string_to_param: {'*': rows}, name}`, `{emb_params: rows}`, or `{clip_l, clip_g}`."""
    values, path = contents.values, contents.path
    header = contents.header
    name = header.get("cdkit_token") or _name(values.get("name")) or path.stem
    start = header.get("cdkit_initializer", "")
    if set(values) == set(XL_KEYS.values()):
        tokens = [make_token(path, name, {tower: values[key] for tower, key in XL_KEYS.items()}, start)]
    elif "string_to_param" in values or "emb_params" in values:
        rows: Any = values.get("emb_params", values.get("string_to_param"))
        rows = next(iter(rows.values()), None) if isinstance(rows, dict) else rows
        if not hasattr(rows, "ndim"):
            raise InputError(f"{path} holds no embedding.", hint="Damaged file.")
        tokens = [make_token(path, name, {"text_encoder": rows}, start)]
    else:
        tokens = [make_token(path, text, {"text_encoder": rows}, start) for text, rows in values.items()]
    return Found(KIND, path, tokens=tuple(tokens), header=header)


def _name(value: Any) -> str:
    return value if isinstance(value, str) else ""


def stored_prompts(header: Any) -> list[str]:
    """The prompts that cdkit's exports carry along."""
    try:
        prompts = json.loads(header.get("cdkit_prompts", "[]"))
    except (ValueError, RecursionError):
        return []
    texts = prompts if isinstance(prompts, list) else []
    return [text for text in texts if isinstance(text, str) and text.isprintable()]
