"""The delta file: what a training changed, as differences from the base model, and the modifier tokens it made.

`delta.safetensors` holds `unet.<parameter>` (fine-tuned minus base, fp32) or, for a change of low rank,
`unet.<parameter>.up` and `.down`, and `token.<n>.<text encoder>` (embedding rows); everything else is in its header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cdkit
from cdkit.errors import InputError, pip_install
from cdkit.json_text import json_text
from cdkit.weights.tensor_file import write_tensors

if TYPE_CHECKING:
    import torch

DELTA_NAME = "delta.safetensors"
DELTA_FORMAT = "cdkit-delta-1"
UP, DOWN = ".up", ".down"
# The setting of a delta that was trained with other deltas applied: without them it is not what was trained.
ON_TOP_OF = "on_top_of"


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix as a product: up (outputs, rank) times down (rank, inputs)."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.up.shape[0]), int(self.down.shape[1]))


@dataclass(frozen=True)
class ModifierToken:
    """A new word: its text, the vocabulary entry it started from, and per text encoder its rows (n, width), fp32."""

    text: str
    initializer: str
    rows: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Delta:
    """What a training, a merge or an import produced.

    changes: by U-Net parameter name. base_hash: `base_model.base_hash` of the model it was made on. settings: the
    config it was made with, as JSON values.
    """

    method: str
    base: str
    base_hash: str
    changes: Mapping[str, torch.Tensor | LowRank] = field(default_factory=dict)
    tokens: tuple[ModifierToken, ...] = ()
    prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = cdkit.__version__


def matrix(change: torch.Tensor | LowRank) -> torch.Tensor:
    """The change as a full tensor."""
    return change.up @ change.down if isinstance(change, LowRank) else change


def delta_path(path: Path | str) -> Path:
    """The delta file that a path means: a .safetensors file, or a folder that holds delta.safetensors.

    Raises InputError when there is none.
    """
    given = Path(path)
    found = given / DELTA_NAME if given.is_dir() else given
    if not found.is_file():
        what = f"holds no {DELTA_NAME}" if given.is_dir() else "does not exist"
        raise InputError(f"{given} {what}.", hint="Give a folder that cdkit train or cdkit merge made, or its file.")
    return found


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta file atomically. Raises InputError when a value is NaN or infinite."""
    write_tensors(path, _tensors(delta), _header(delta))


def _tensors(delta: Delta) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, change in delta.changes.items():
        if isinstance(change, LowRank):
            found[f"unet.{name}{UP}"], found[f"unet.{name}{DOWN}"] = change.up, change.down
        else:
            found[f"unet.{name}"] = change
    for position, token in enumerate(delta.tokens):
        for tower, rows in token.rows.items():
            found[f"token.{position}.{tower}"] = rows
    return found


def _header(delta: Delta) -> dict[str, str]:
    tokens = [{"text": token.text, "initializer": token.initializer} for token in delta.tokens]
    return {
        "format": DELTA_FORMAT,
        "method": delta.method,
        "base": delta.base,
        "base_hash": delta.base_hash,
        "tokens": json_text(tokens),
        "prompts": json_text(list(delta.prompts)),
        "settings": json_text(dict(delta.settings), sort_keys=True),
        "made_by": delta.made_by,
    }


def load_delta(path: Path | str) -> Delta:
    """Read a delta file or a folder that holds one; nothing in it is executed.

    Raises InputError for a file that is damaged, of another kind, or has missing, unknown or misshapen entries.
    """
    file = delta_path(path)
    header, tensors = _read(file)
    if header.get("format") != DELTA_FORMAT:
        kind = header.get("format", "no cdkit delta")
        hint = pip_install(upgrade=True) if kind.startswith("cdkit-delta-") else "cdkit delta import reads others."
        raise InputError(f"{file} is {kind}, not {DELTA_FORMAT}.", hint=hint)
    try:
        named = _token_entries(header)
        delta = Delta(
            method=header["method"],
            base=header["base"],
            base_hash=header["base_hash"],
            changes=_changes(tensors),
            tokens=tuple(_token(position, entry, tensors) for position, entry in enumerate(named)),
            prompts=tuple(str(prompt) for prompt in json.loads(header["prompts"])),
            settings=dict(json.loads(header["settings"])),
            made_by=header.get("made_by", ""),
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}", hint="Make it again.") from error
    if tensors:
        raise InputError(
            f"{file} has entries that no delta has: {', '.join(sorted(tensors)[:3])}.", hint="Make it again."
        )
    return delta


def read_header(path: Path | str) -> dict[str, str]:
    """The header of a delta file, without its tensors; raises InputError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    file = delta_path(path)
    try:
        with safe_open(str(file), framework="np") as handle:
            return dict(handle.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read: {error}",
            hint="It may be truncated; make it again. Files of other tools come in with cdkit delta import.",
        ) from error


def delta_tokens(paths: Sequence[Path | str]) -> list[str]:
    """The modifier tokens that delta files bring, from their headers alone; raises InputError for a damaged one."""
    found: list[str] = []
    for path in paths:
        try:
            found += [entry["text"] for entry in _token_entries(read_header(path))]
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{delta_path(path)} is damaged: {error}", hint="Make it again.") from error
    return found


def _token_entries(header: Mapping[str, str]) -> list[dict[str, str]]:
    """The tokens a header names: text and initializer, texts distinct."""
    entries = json.loads(header["tokens"])
    texts = [entry["text"] for entry in entries]
    for text in texts:
        if not isinstance(text, str) or not text.strip() or text != text.strip():
            raise ValueError(f"{text!r} cannot be a token")
        if texts.count(text) > 1:
            raise ValueError(f"it has the token {text!r} twice")
    return list(entries)


def _read(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(file)
    try:
        tensors = load_file(str(file))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}", hint="It may be truncated; make it again.") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{file} holds {tensor.dtype} in {name}, not numbers.", hint="Make it again.")
        if not tensor.isfinite().all():
            raise InputError(f"{file} holds NaN or infinite values in {name}.", hint="Make it again.")
    return header, {name: tensor.float() for name, tensor in tensors.items()}


def _changes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | LowRank]:
    """Take the U-Net's entries out of `tensors`."""
    own = {key.removeprefix("unet."): tensors.pop(key) for key in sorted(tensors) if key.startswith("unet.")}
    found: dict[str, torch.Tensor | LowRank] = {}
    for key, tensor in own.items():
        name, _, end = key.rpartition(".")
        if end in ("up", "down") and f"{name}{UP}" in own and f"{name}{DOWN}" in own:
            up, down = own[f"{name}{UP}"], own[f"{name}{DOWN}"]
            if name in own:
                raise ValueError(f"{name} stands there both whole and as up and down")
            if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
                raise ValueError(f"{name}: up {tuple(up.shape)} and down {tuple(down.shape)} do not fit")
            found[name] = LowRank(up, down)
        elif end in ("up", "down"):
            raise ValueError(f"{name} has only one of up and down")
        else:
            found[key] = tensor
    return found


def _token(position: int, entry: Mapping[str, str], tensors: dict[str, torch.Tensor]) -> ModifierToken:
    """Take one token's rows out of `tensors`."""
    prefix = f"token.{position}."
    rows = {key.removeprefix(prefix): tensors.pop(key) for key in sorted(tensors) if key.startswith(prefix)}
    if not rows:
        raise ValueError(f"the token {entry['text']!r} has no rows")
    for tower, row in rows.items():
        if row.ndim != 2 or not row.numel() or tower not in ("text_encoder", "text_encoder_2"):
            raise ValueError(f"the token {entry['text']!r} has rows {tuple(row.shape)} for {tower}")
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"the token {entry['text']!r} has different numbers of rows for its text encoders")
    return ModifierToken(str(entry["text"]), str(entry.get("initializer", "")), rows)
