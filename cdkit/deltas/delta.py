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
from cdkit.core.errors import CdkitError, InputError, pip_install
from cdkit.core.file_kinds import require_file
from cdkit.core.formatting import json_text
from cdkit.core.shards import read_tensor_header, read_tensors, write_tensors
from cdkit.deltas.gating import GatedChange, words_of_gates
from cdkit.deltas.low_rank import LowRank
from cdkit.deltas.text_features import TOWERS

if TYPE_CHECKING:
    import torch

DELTA_NAME = "delta.safetensors"
DELTA_FORMATS = "cdkit-delta-"
DELTA_FORMAT = f"{DELTA_FORMATS}1"
UP, DOWN, GATED = ".up", ".down", "gated"
# A few bytes of factors can stand for any number of values. SDXL's whole U-Net has 2.6 thousand million.
LARGEST_CHANGE = 3 << 30
MOST_TOKENS = 1000
DEEPEST = 20
_PARAMETER = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# The setting of a delta that was trained with other deltas applied: without them it is not what was trained.
ON_TOP_OF = "on_top_of"


@dataclass(frozen=True)
class ModifierToken:
    """A new word: its text, the vocabulary entry it started from, and per text encoder its rows (n, width), fp32."""

    text: str
    initializer: str
    rows: Mapping[str, torch.Tensor]

    def has_rows_of(self, other: ModifierToken) -> bool:
        """Whether both have the same embeddings."""
        same_towers = set(self.rows) == set(other.rows)
        return same_towers and all(rows.equal(other.rows[tower]) for tower, rows in self.rows.items())


@dataclass(frozen=True)
class Delta:
    """What a training, a merge or an import produced.

    changes: by the denoiser's parameter name. base_hash: `base_model.base_hash` of the model it was made on. settings:
    the config it was made with, as JSON values. part: what they are changes of, `unet` or `transformer`. gated:
    changes that act where a concept's words stand, and nowhere else.
    """

    method: str
    base: str
    base_hash: str
    changes: Mapping[str, torch.Tensor | LowRank] = field(default_factory=dict)
    tokens: tuple[ModifierToken, ...] = ()
    prompts: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: str = cdkit.__version__
    part: str = "unet"
    gated: tuple[GatedChange, ...] = ()

    @property
    def all_changes(self) -> list[Mapping[str, torch.Tensor | LowRank]]:
        """The changes that act everywhere, and those of every gate, each by parameter name."""
        return [self.changes, *(gate.changes for gate in self.gated)]


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
    path = Path(path)
    file = path / DELTA_NAME if path.is_dir() else path
    if not file.exists():
        what = f"holds no {DELTA_NAME}" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}.", hint="Give a folder that cdkit train or cdkit merge made, or its file.")
    require_file(file)
    return file


def save_delta(delta: Delta, path: Path) -> None:
    """Write a delta file atomically. Raises InputError when a value is NaN or infinite."""
    write_tensors(path, _tensors(delta), _header(delta))


def _tensors(delta: Delta) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    parts = [delta.part, *(f"{GATED}.{number}" for number in range(len(delta.gated)))]
    for part, changes in zip(parts, delta.all_changes, strict=True):
        for name, change in changes.items():
            if isinstance(change, LowRank):
                tensors[f"{part}.{name}{UP}"], tensors[f"{part}.{name}{DOWN}"] = change.up, change.down
            else:
                tensors[f"{part}.{name}"] = change
    for position, token in enumerate(delta.tokens):
        tensors |= {f"token.{position}.{tower}": rows for tower, rows in token.rows.items()}
    return tensors


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
        **({"gates": json_text([gate.words for gate in delta.gated])} if delta.gated else {}),
    }


def export_header(delta: Delta, **more: str) -> dict[str, str]:
    """What every exported file says of itself; `cdkit delta import` reads it back."""
    return {
        "format": "pt",
        "cdkit_base": delta.base,
        "cdkit_base_hash": delta.base_hash,
        "cdkit_method": delta.method,
        "cdkit_prompts": json_text(list(delta.prompts)),
        **more,
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
        part = "transformer" if "transformer" in parts else "unet"
        delta = Delta(
            method=_line(header, "method"),
            base=_line(header, "base"),
            base_hash=_line(header, "base_hash"),
            changes=_changes(parts.pop(part, {})),
            tokens=tuple(_tokens(_token_entries(header), parts.pop("token", {}))),
            prompts=tuple(str(prompt) for prompt in _json(header, "prompts")),
            settings=dict(_json(header, "settings")),
            made_by=_line(header, "made_by") if "made_by" in header else "",
            part=part,
            gated=_gated(header, parts.pop(GATED, {})),
        )
        for changes in delta.all_changes:
            check_changes(changes)
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
    texts: list[str] = []
    for path in paths:
        try:
            texts += [entry["text"] for entry in _token_entries(read_header(path))]
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{delta_path(path)} is damaged: {error}", hint="Make it again.") from error
    return texts


def delta_family(path: Path | str) -> str:
    """The family of transformers that a delta's header names; empty for a U-Net's, and where there is none to read."""
    try:
        settings = _json(read_header(path), "settings")
    except (CdkitError, OSError, LookupError, ValueError):
        return ""
    return str(settings.get("family", "")) if isinstance(settings, dict) else ""


def acts_at_words(path: Path | str) -> bool:
    """Whether a delta's header says that it is gated; not where there is none to read."""
    try:
        return "gates" in read_header(path)
    except (CdkitError, OSError, LookupError, ValueError):
        return False


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
    """The entries by the first word of their names: `unet` or `transformer`, `token`."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(tensors):
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = tensors[key]
    return parts


def _changes(entries: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor | LowRank]:
    """The denoiser's entries as changes by parameter name."""
    changes: dict[str, torch.Tensor | LowRank] = {}
    for key, tensor in entries.items():
        name, _, end = key.rpartition(".")
        if end not in ("up", "down"):
            changes[key] = tensor
        elif f"{name}{UP}" not in entries or f"{name}{DOWN}" not in entries:
            raise ValueError(f"{name[:80]} has only one of up and down")
        elif name in entries:
            raise ValueError(f"{name[:80]} stands there both whole and as up and down")
        elif end == "up":
            try:
                changes[name] = LowRank(tensor, entries[f"{name}{DOWN}"])
            except ValueError as error:
                raise ValueError(f"{name[:80]}: {error}") from error
    return dict(sorted(changes.items()))


def _gated(header: Mapping[str, str], entries: Mapping[str, torch.Tensor]) -> tuple[GatedChange, ...]:
    """The gated changes, `<number>.<parameter>` each, with the words that the header names."""
    words = words_of_gates(header["gates"]) if "gates" in header else []
    by_number: list[dict[str, torch.Tensor]] = [{} for _ in words]
    for key, tensor in entries.items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(words):
            raise ValueError(f"it names no words for gated.{key[:80]}")
        by_number[int(number)][name] = tensor
    return tuple(GatedChange(word, _changes(some)) for word, some in zip(words, by_number, strict=True))


def _tokens(entries: Sequence[Mapping[str, str]], tensors: Mapping[str, torch.Tensor]) -> list[ModifierToken]:
    """The tokens with their rows, `<number>.<text encoder>` each; every row belongs to one of them."""
    rows: dict[str, dict[str, torch.Tensor]] = {}
    for key, row in tensors.items():
        position, _, tower = key.partition(".")
        rows.setdefault(position, {})[tower] = row
    tokens = [_token(entry, rows.pop(str(position), {})) for position, entry in enumerate(entries)]
    if rows:
        raise ValueError(f"it has entries that no delta has: token.{next(iter(rows))[:80]}")
    return tokens


def _token(entry: Mapping[str, str], rows: Mapping[str, torch.Tensor]) -> ModifierToken:
    if not rows:
        raise ValueError(f"the token {entry['text']!r} has no rows")
    for tower, row in rows.items():
        if row.ndim != 2 or not row.numel() or tower not in TOWERS:
            raise ValueError(f"the token {entry['text']!r} has rows {tuple(row.shape)} for {tower[:80]}")
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError(f"the token {entry['text']!r} has different numbers of rows for its text encoders")
    initializer = str(entry.get("initializer", ""))
    if not initializer.isprintable():
        raise ValueError(f"{initializer[:80]!r} cannot be an initializer")
    return ModifierToken(str(entry["text"]), initializer, rows)
