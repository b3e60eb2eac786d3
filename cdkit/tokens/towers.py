"""Loads the tokenizers a spec names: CLIP's own, or every text tower of a base model (folder or hub id)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from cdkit.errors import InputError, NetworkError
from cdkit.inputs import EMBEDDED
from cdkit.tokens.vocabulary import CLIP, Tower, tower_of

_FOLDERS = ("tokenizer", "tokenizer_2")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
_HUB_PATTERNS = (
    *(f"{folder}/*" for folder in _FOLDERS),
    *_TOKENIZER_FILES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def load_towers(spec: str) -> list[Tower]:
    """The tokenizers of `spec`: `clip` (the vocabulary that ships with open_clip), `embedded`, a folder or a hub id.

    A base model's folder gives one tower per text encoder (two for SDXL); a tokenizer's own folder gives one. Only a
    hub id is ever downloaded. Raises InputError when there is no usable tokenizer, NetworkError when the hub fails.
    """
    if spec in (CLIP, EMBEDDED) or spec.startswith(f"{EMBEDDED}:"):
        return [_clip()]
    folder = Path(spec).expanduser()
    if folder.is_file():
        raise InputError(f"{spec} is a file, not a folder.", hint="Give the model's folder, a hub id, or 'clip'.")
    if not folder.is_dir():
        folder = _from_hub(spec)
    named = [name for name in _FOLDERS if (folder / name).is_dir()]
    if named:
        return [tower_of(name, _load(folder / name)) for name in named]
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return [tower_of("tokenizer", _load(folder))]
    raise InputError(
        f"{spec} holds no tokenizer: no tokenizer/ folder and none of {', '.join(_TOKENIZER_FILES)}.",
        hint="Give a diffusers model folder or hub id, a tokenizer's folder, or 'clip'.",
    )


@lru_cache(maxsize=1)
def _clip() -> Tower:
    from cdkit.embedded.tokens import load_tokenizer

    return tower_of("tokenizer", load_tokenizer())


def _load(folder: Path) -> Any:
    present = {path.name for path in folder.iterdir()}
    if "vocab.json" in present and not present & {"merges.txt", "tokenizer.json"}:
        raise InputError(
            f"{folder} has a vocabulary (vocab.json) but no merges (merges.txt).",
            hint="Copy the model's whole tokenizer folder, or use --tokenizer clip.",
        )
    from transformers import AutoTokenizer, CLIPTokenizer

    # Without these two files transformers cannot tell the class, and old CLIP folders have neither.
    kind = AutoTokenizer if present & {"tokenizer_config.json", "config.json"} else CLIPTokenizer
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # every backend has its own; all mean that the files cannot be used
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded: {first}",
            hint="The files may be truncated, or of a tokenizer this transformers does not know.",
        ) from error


def _from_hub(spec: str) -> Path:
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise InputError(f"{spec} does not exist.", hint="Give a model folder, a hub id, or 'clip'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec, allow_patterns=list(_HUB_PATTERNS)))
    except Exception as error:  # httpx, hub and file-system errors alike
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkError(
            f"The tokenizer of {spec} could not be fetched from the hub: {first}",
            hint="Check the name and the network, or give a local model folder; 'clip' needs no download.",
        ) from error
