"""The delta file: what a training changed, as differences from the base model, and the modifier tokens it made."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cdkit
from cdkit.core.errors import InputError, pip_install
from cdkit.core.file_kinds import require_file
from cdkit.core.formatting import json_text
from cdkit.core.shards import read_tensor_header, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch


DELTA_NAME = "delta.safetensors"
DELTA_FORMATS = "cdkit-delta-"
DELTA_FORMAT = f"{DELTA_FORMATS}1"
UP, DOWN = ".up", ".down"
# A few bytes of factors can stand for any number of values. The largest matrix of SDXL's U-Net, a convolution, has
# 29 million, the whole U-Net 2.6 thousand million.
LARGEST_MATRIX, LARGEST_CHANGE = 1 << 26, 3 << 30
MOST_TOKENS = 1000
DEEPEST = 20
_PARAMETER = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# The setting of a delta that was trained with other deltas applied: without them it is not what was trained.
ON_TOP_OF = "on_top_of"


@dataclass(frozen=True)
class LowRank:
    """A change of a matrix as a product: up (outputs, rank) times down (rank, inputs).

    Raises ValueError when the two do not fit, or stand for a matrix larger than any U-Net has.
    """

    up: torch.Tensor
    down: torch.Tensor

    def __post_init__(self) -> None:
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 2 or len(down) != 2 or up[1] != down[0] or 0 in (*up, *down):
            raise ValueError(f"factors of the shapes {up} and {down} do not fit")
        if up[0] * down[1] > LARGEST_MATRIX:
            raise ValueError(f"factors of the shapes {up} and {down} stand for {up[0] * down[1]:,} values")

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


def norm(change: torch.Tensor | LowRank) -> float:
    """‖ΔW‖ (Frobenius) in fp64; of a product from its factors: the trace of (UᵀU)(DDᵀ)."""
    import torch

    if isinstance(change, LowRank) and change.rank <= min(change.shape):
        up, down = change.up.double(), change.down.double()
        return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))
    return float(torch.linalg.norm(matrix(change).double()))


def check_changes(changes: Mapping[str, torch.Tensor | LowRank]) -> None:
    """Raise ValueError for a name or shape that no parameter has, or more values in all than any U-Net has."""
    for name, change in changes.items():
        shape = tuple(change.shape)
        if not _PARAMETER.fullmatch(name) or not shape or 0 in shape:
            raise ValueError(f"{name[:80]!r} of the shape {shape} is no change of a parameter")
    total = sum(math.prod(change.shape) for change in changes.values())
    if total > LARGEST_CHANGE:
        raise ValueError(f"its changes stand for {total:,} values, more than any U-Net has")


def delta_path(path: Path | str) -> Path:
    """The delta file that a path means: a .safetensors file, or a folder that holds delta.safetensors.

    Raises InputError when there is none.
    """
    given = Path(path)
    found = given / DELTA_NAME if given.is_dir() else given
    if not found.exists():
        what = f"holds no {DELTA_NAME}" if given.is_dir() else "does not exist"
        raise InputError(f"{given} {what}.", hint="Give a folder that cdkit train or cdkit merge made, or its file.")
    require_file(found)
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
    header, tensors = read_tensors(file)
    if header.get("format") != DELTA_FORMAT:
        kind = header.get("format", "no cdkit delta")
        hint = pip_install(upgrade=True) if kind.startswith(DELTA_FORMATS) else "cdkit delta import reads others."
        raise InputError(f"{file} is {kind[:40]!r}, not {DELTA_FORMAT}.", hint=hint)
    try:
        parts = _parts({name: _numbers(name, tensor) for name, tensor in tensors.items()})
        delta = Delta(
            method=_line(header, "method"),
            base=_line(header, "base"),
            base_hash=_line(header, "base_hash"),
            changes=_changes(parts.pop("unet", {})),
            tokens=tuple(_tokens(_token_entries(header), parts.pop("token", {}))),
            prompts=tuple(str(prompt) for prompt in _json(header, "prompts")),
            settings=dict(_json(header, "settings")),
            made_by=_line(header, "made_by") if "made_by" in header else "",
        )
        check_changes(delta.changes)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}", hint="Make it again.") from error
    unknown = [f"{part}.{name}"[:80] for part, entries in parts.items() for name in entries]
    if unknown:
        raise InputError(
            f"{file} has entries that no delta has: {', '.join(sorted(unknown)[:3])}.", hint="Make it again."
        )
    return delta


def read_header(path: Path | str) -> dict[str, str]:
    """The header of a delta file, without its tensors; raises InputError when it cannot be read."""
    return read_tensor_header(delta_path(path))[0]


def delta_tokens(paths: Sequence[Path | str]) -> list[str]:
    """The modifier tokens that delta files bring, from their headers alone; raises InputError for a damaged one."""
    found: list[str] = []
    for path in paths:
        try:
            found += [entry["text"] for entry in _token_entries(read_header(path))]
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{delta_path(path)} is damaged: {error}", hint="Make it again.") from error
    return found


def _line(header: Mapping[str, str], name: str) -> str:
    """A header's text of one line: it is shown in terminals."""
    text = header[name]
    if not text.isprintable():
        raise ValueError(f"its {name} is no line of text")
    return text


def _json(header: Mapping[str, str], name: str) -> Any:
    """A header's value in JSON, no deeper than settings are, its numbers finite."""
    try:
        value = json.loads(header[name], parse_constant=_refuse_constant)
        too_deep = _depth(value) > DEEPEST
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"its {name} are nested too deeply")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _depth(value: Any) -> int:
    """How deep lists and mappings nest; raises ValueError for half of a surrogate pair, which nothing can write."""
    if isinstance(value, str):
        value.encode()
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _token_entries(header: Mapping[str, str]) -> list[dict[str, str]]:
    """The tokens a header names: text and initializer, texts distinct."""
    entries = _json(header, "tokens")
    if len(entries) > MOST_TOKENS:
        raise ValueError(f"it names {len(entries):,} tokens")
    times = Counter(entry["text"] for entry in entries)
    for text, number in times.items():
        if not isinstance(text, str) or not text.isprintable() or not text or text != text.strip():
            raise ValueError(f"{str(text)[:80]!r} cannot be a token")
        if number > 1:
            raise ValueError(f"it has the token {text!r} twice")
    return list(entries)


def _numbers(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A stored tensor as fp32."""
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        raise ValueError(f"it holds {tensor.dtype} in {name[:80]}, not numbers")
    if not tensor.isfinite().all():
        raise ValueError(f"it holds NaN or infinite values in {name[:80]}")
    return tensor.float()


def _parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The entries by the first word of their names: `unet`, `token`."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        part, _, name = key.partition(".")
        found.setdefault(part, {})[name] = tensors[key]
    return found


def _changes(own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | LowRank]:
    """The U-Net's entries as changes by parameter name."""
    found: dict[str, torch.Tensor | LowRank] = {}
    for key, tensor in own.items():
        name, _, end = key.rpartition(".")
        if end in ("up", "down") and f"{name}{UP}" in own and f"{name}{DOWN}" in own:
            if name in own:
                raise ValueError(f"{name[:80]} stands there both whole and as up and down")
            if end == "up":
                found[name] = _product(name, own[f"{name}{UP}"], own[f"{name}{DOWN}"])
        elif end in ("up", "down"):
            raise ValueError(f"{name[:80]} has only one of up and down")
        else:
            found[key] = tensor
    return dict(sorted(found.items()))


def _product(name: str, up: torch.Tensor, down: torch.Tensor) -> LowRank:
    try:
        return LowRank(up, down)
    except ValueError as error:
        raise ValueError(f"{name[:80]}: {error}") from error


def _tokens(entries: Sequence[Mapping[str, str]], own: Mapping[str, torch.Tensor]) -> list[ModifierToken]:
    """The tokens with their rows, `<number>.<text encoder>` each; every row belongs to one of them."""
    rows: dict[str, dict[str, torch.Tensor]] = {}
    for key, row in own.items():
        position, _, tower = key.partition(".")
        rows.setdefault(position, {})[tower] = row
    found = [_token(entry, rows.pop(str(position), {})) for position, entry in enumerate(entries)]
    if rows:
        raise ValueError(f"it has entries that no delta has: token.{next(iter(rows))[:80]}")
    return found


def _token(entry: Mapping[str, str], rows: Mapping[str, torch.Tensor]) -> ModifierToken:
    if not rows:
        raise ValueError(f"the token {entry['text']!r} has no rows")
    for tower, row in rows.items():
        if row.ndim != 2 or not row.numel() or tower not in ("text_encoder", "text_encoder_2"):
            raise ValueError(f"the token {entry['text']!r} has rows {tuple(row.shape)} for {tower[:80]}")
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"the token {entry['text']!r} has different numbers of rows for its text encoders")
    initializer = str(entry.get("initializer", ""))
    if not initializer.isprintable():
        raise ValueError(f"{initializer[:80]!r} cannot be an initializer")
    return ModifierToken(str(entry["text"]), initializer, rows)
