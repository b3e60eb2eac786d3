"""Textual-inversion files: one per modifier token, named after it; what is typed once they are installed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.shards import write_tensors
from cdkit.deltas.delta import Delta, export_header
from cdkit.deltas.text_features import TOWERS
from cdkit.deltas.weight_files import Contents, ForeignFile, make_token

# Names that Windows keeps for devices, with any ending.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
_LONGEST = 64


def file_stems(texts: Iterable[str]) -> dict[str, str]:
    """A file name without ending for every text: letters, digits, `-` and `_`, different even ignoring case."""
    stems: dict[str, str] = {}
    used: set[str] = set()
    for text in texts:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:_LONGEST].strip("-") or "token"
        stem = f"{stem}-token" if stem.lower() in _RESERVED else stem
        chosen, number = stem, 2
        while chosen.lower() in used:
            chosen, number = f"{stem}-{number}", number + 1
        used.add(chosen.lower())
        stems[text] = chosen
    return stems


@dataclass(frozen=True)
class Spelling:
    """What a modifier token is typed as: in cdkit and diffusers, in A1111 and Forge, in ComfyUI.

    The web UIs call an embedding by its file's name.
    """

    token: str
    webui: str
    comfyui: str

    def __str__(self) -> str:
        return f"{self.token} in diffusers and cdkit, {self.webui} in A1111 and Forge, {self.comfyui} in ComfyUI"


def spellings(tokens: Iterable[str]) -> list[Spelling]:
    """How each token of a delta is typed once its embedding, as cdkit exports it, is installed."""
    return [Spelling(text, stem, f"embedding:{stem}") for text, stem in file_stems(tokens).items()]


# SDXL's towers by the names that embeddings for it use.
XL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def write_embeddings(delta: Delta, folder: Path, *, half: bool) -> dict[str, Path]:
    """Write `{token: rows (n, width)}`, for SDXL `{clip_l: …, clip_g: …}`; returns each token's file.

    A transformer's are by text encoder: no tool reads them yet, and their vocabularies differ.
    """
    written: dict[str, Path] = {}
    stems = file_stems(token.text for token in delta.tokens)
    for token in delta.tokens:
        path = folder / f"{stems[token.text]}.safetensors"
        if delta.part == "transformer":
            tensors = dict(token.rows)
        elif set(token.rows) == {"text_encoder"}:
            tensors = {token.text: token.rows["text_encoder"]}
        else:
            tensors = {XL_KEYS[name]: rows for name, rows in token.rows.items()}
        facts = {"cdkit_token": token.text, "cdkit_initializer": token.initializer}
        write_tensors(path, tensors, export_header(delta, **facts), half=half)
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


def read_embedding(contents: Contents) -> ForeignFile:
    """`{token: rows}`, A1111's `{string_to_param: {'*': rows}, name}`, `{emb_params: rows}`, or `{clip_l, clip_g}`."""
    values, path, header = contents.values, contents.path, contents.header
    stated = values.get("name")
    name = header.get("cdkit_token") or (stated if isinstance(stated, str) else "") or path.stem
    start = header.get("cdkit_initializer", "")
    if set(values) <= set(TOWERS):
        tokens = [make_token(path, name, dict(values), start)]
    elif set(values) == set(XL_KEYS.values()):
        tokens = [make_token(path, name, {tower: values[key] for tower, key in XL_KEYS.items()}, start)]
    elif "string_to_param" in values or "emb_params" in values:
        rows: Any = values.get("emb_params", values.get("string_to_param"))
        rows = next(iter(rows.values()), None) if isinstance(rows, dict) else rows
        if not hasattr(rows, "ndim"):
            raise InputError(f"{path} holds no embedding.", hint="Damaged file.")
        tokens = [make_token(path, name, {"text_encoder": rows}, start)]
    else:
        tokens = [make_token(path, text, {"text_encoder": rows}, start) for text, rows in values.items()]
    return ForeignFile(KIND, path, tokens=tuple(tokens), header=header)


def stored_prompts(header: Any) -> list[str]:
    """The prompts that cdkit's exports carry along."""
    try:
        prompts = json.loads(header.get("cdkit_prompts", "[]"))
    except (ValueError, RecursionError):
        return []
    texts = prompts if isinstance(prompts, list) else []
    return [text for text in texts if isinstance(text, str) and text.isprintable()]
