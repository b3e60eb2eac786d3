"""The shipped weights: safetensors files next to a record of their hashes and of the encoder's threshold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.core.storage import atomic_path, write_text

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent / "weights"
RECORD = "weights.json"
TEXT_ENCODER, PICTURE_ENCODER = "text_encoder.safetensors", "picture_encoder.safetensors"
AUTOENCODER, UNET = "autoencoder.safetensors", "unet.safetensors"
FILES = (TEXT_ENCODER, PICTURE_ENCODER, AUTOENCODER, UNET)
REINSTALL = "Reinstall cdkit, or make the weights anew with `python -m cdkit.embedded.pretraining`."


def read_record(folder: Path = FOLDER) -> dict[str, Any]:
    """The record: {"files": {name: {"sha256", "bytes"}}, "threshold", ...}; raises InputError."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The embedded model's record is missing or unreadable: {path}", hint=REINSTALL) from error
    return record


def read_tensors(name: str, folder: Path = FOLDER) -> dict[str, torch.Tensor]:
    """A weights file's tensors, its hash checked; raises InputError when missing or not the one recorded."""
    from safetensors.torch import load

    path = folder / name
    recorded = read_record(folder).get("files", {}).get(name, {}).get("sha256")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"A weights file of the embedded model is missing: {path}", hint=REINSTALL) from error
    if hashlib.sha256(content).hexdigest() != recorded:
        raise InputError(
            f"A weights file of the embedded model is corrupt (its sha256 is wrong): {path}", hint=REINSTALL
        )
    tensors: dict[str, torch.Tensor] = load(content)
    return tensors


def write_tensors(name: str, tensors: Mapping[str, torch.Tensor], folder: Path = FOLDER) -> None:
    """Writes a weights file, floats as float16, and its hash into the record."""
    from safetensors.torch import save

    halves = {
        key: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for key, tensor in tensors.items()
    }
    content = save(halves)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / name) as temporary:
        temporary.write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    record = read_record(folder) if (folder / RECORD).is_file() else {}
    update_record({"files": record.get("files", {}) | {name: entry}}, folder)


def update_record(changes: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Changes some of the record's entries."""
    record = read_record(folder) if (folder / RECORD).is_file() else {}
    write_text(folder / RECORD, json_text(record | dict(changes), indent=2, sort_keys=True) + "\n")


def weights_hash(folder: Path = FOLDER) -> str:
    """One sha256 for the whole base model: over the recorded hashes of its files."""
    files = read_record(folder).get("files", {})
    lines = [f"{name} {files.get(name, {}).get('sha256')}" for name in FILES]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def text_encoder_hash(folder: Path = FOLDER) -> str:
    """The sha256 of the text encoder's file: what the embeddings of captions depend on."""
    return str(read_record(folder).get("files", {}).get(TEXT_ENCODER, {}).get("sha256"))


def default_threshold(folder: Path = FOLDER) -> float:
    """The similarity from which two captions count as alike for this encoder."""
    return float(read_record(folder)["threshold"])
