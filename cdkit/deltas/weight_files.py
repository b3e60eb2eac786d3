"""Untrusted weight files, read without running anything in them and without more memory than they are large.

torch's own `weights_only` reader runs no code, but a few bytes can make it allocate any amount: a tensor may say any
shape, and some of the functions that it allows (bytearray, torch.Tensor) take a size. So what a file calls is looked
at first, then its tensors' shapes are read without their data (torch's meta device), and only then the data.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from cdkit.core.errors import InputError
from cdkit.core.file_kinds import AGAIN, check_weight_file, is_safetensors
from cdkit.core.formatting import first_line
from cdkit.core.shards import read_tensors
from cdkit.deltas.delta import ModifierToken
from cdkit.deltas.low_rank import LowRank

if TYPE_CHECKING:
    import torch

# What a file of weights needs to name: how tensors are put together, types of numbers, ordered mappings.
_PLAIN = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor(_v2|_v3)?|parameter)|torch\.(storage\.)?\w+Storage|"
    r"torch\.(float|bfloat|double|half|u?int|bool|complex)\w*|torch\.Size|torch\.device|torch\.serialization\._get_layout|"
    r"__builtin__\.(long|set)|builtins\.set|_codecs\.encode"
)
_SLACK = 1 << 20
LARGEST_PICKLE = 64 << 20
MOST_VALUES = 100_000
_HINT = "Ask its author for a safetensors file."
# Of the older layout: a number, a version, the system; then the values.
_LEGACY_BEFORE = 3


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote, tensors on the CPU.

    Raises InputError for a file that is damaged, holds more than plain tensors, or says more than it holds.
    """
    read_torch_outline(path)
    return _load(path, "cpu")


def read_torch_outline(path: Path) -> Any:
    """What torch.save wrote with its tensors' shapes, but not their data (on torch's meta device).

    Raises InputError as `read_torch_file` does.
    """
    start = check_weight_file(path)
    size = path.stat().st_size
    if start.startswith(b"PK"):
        _check_archive(path, size)
    for name in _called(path, in_archive=start.startswith(b"PK")):
        if not _PLAIN.fullmatch(name):
            raise InputError(
                f"{path} was refused: it holds more than plain tensors, such as code ({name[:80]}). Nothing in it was "
                "run.",
                hint=_HINT,
            )
    outline = _load(path, "meta")
    stated = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(outline, path))
    if stated > size + _SLACK:
        raise InputError(f"{path} was refused: its tensors say {stated:,} bytes, it holds {size:,}.", hint=_HINT)
    return outline


def _load(path: Path, device: str) -> Any:
    import torch

    try:
        return torch.load(path, map_location=device, weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error:")[2].strip().split("\n")[0][:200] or "damaged"
        raise InputError(
            f"{path} was refused: it holds more than plain tensors, such as code. Nothing in it was run. ({reason})",
            hint=_HINT,
        ) from error
    # Whatever a damaged or hostile file makes the reader raise, it is the file's fault.
    except Exception as error:
        raise InputError(f"{path} is no weight file that can be read: {first_line(error)}", hint=AGAIN) from error


def _check_archive(path: Path, size: int) -> None:
    """torch stores tensors uncompressed, so an archive that unpacks to more than its size is none of torch's."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path} is a damaged archive: {error}", hint=AGAIN) from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size + _SLACK:
        raise InputError(
            f"{path} was refused: its {size:,} bytes unpack to {unpacked:,}.", hint="This is no file that torch wrote."
        )
    values = [entry for entry in entries if _is_values(entry.filename)]
    if len(values) != 1:
        raise InputError(f"{path} is a zip archive, not a weight file.", hint="Unpack it, and give what is inside.")
    if values[0].file_size > LARGEST_PICKLE:
        raise InputError(f"{path} was refused: its description has {values[0].file_size:,} bytes.", hint=_HINT)


def _is_values(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _called(path: Path, *, in_archive: bool) -> Iterator[str]:
    """The full names of everything that the file's pickles call or make."""
    try:
        if in_archive:
            with zipfile.ZipFile(path) as archive:
                (entry,) = [entry for entry in archive.infolist() if _is_values(entry.filename)]
                yield from _globals(io.BytesIO(archive.read(entry)))
        else:
            # A length that the file states is read no further than the file goes, and takes no memory before.
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as handle:
                for _ in range(_LEGACY_BEFORE + 1):
                    yield from _globals(handle)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is no weight file that can be read: {first_line(error)}", hint=AGAIN) from error


def _globals(handle: io.BytesIO | mmap.mmap) -> Iterator[str]:
    # torch's reader refuses every other way to name a function than this one.
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], handle)):
        if operation.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)


def _tensors(value: Any, path: Path) -> Iterator[torch.Tensor]:
    """Every tensor in nested mappings and lists; raises InputError when there are more values than a model has.

    A few lists that hold each other several times stand for any number of values.
    """
    import torch

    waiting, seen = [value], 0
    while waiting:
        current = waiting.pop()
        seen += 1
        if isinstance(current, torch.Tensor):
            yield current
        elif isinstance(current, dict):
            waiting.extend(current.values())
        elif isinstance(current, list | tuple | set):
            waiting.extend(current)
        if seen + len(waiting) > MOST_VALUES:
            raise InputError(f"{path} was refused: it stands for more than {MOST_VALUES:,} values.", hint=_HINT)


LONGEST_TOKEN = 200


@dataclass(frozen=True)
class ForeignFile:
    """What a file of another tool turned out to hold.

    full: whole weights by parameter name; changes: differences; named: differences by kohya's module names and
    `weight` or `bias`, which only the base model can resolve. part: what they are weights of, `unet` or `transformer`.
    """

    kind: str
    path: Path
    full: Mapping[str, torch.Tensor] = field(default_factory=dict)
    changes: Mapping[str, torch.Tensor | LowRank] = field(default_factory=dict)
    named: Mapping[tuple[str, str], torch.Tensor | LowRank] = field(default_factory=dict)
    tokens: tuple[ModifierToken, ...] = ()
    header: Mapping[str, str] = field(default_factory=dict)
    part: str = "unet"


def require_tensor(path: Path, name: str, value: Any) -> None:
    """Raise InputError unless the value is a tensor of floating-point numbers, some at least."""
    import torch

    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.ndim or not value.numel():
        raise InputError(f"{path}: {shown(name)} is no tensor of weights.", hint="Damaged file.")


def make_product(path: Path, name: str, up: Any, down: Any, hint: str) -> LowRank:
    """A change from a file's two factors; raises InputError when they are no matrices, or do not fit."""
    import torch

    if not isinstance(up, torch.Tensor) or not isinstance(down, torch.Tensor):
        raise InputError(f"{path}: {shown(name)} has only one of its two factors.", hint="Damaged file.")
    if not up.is_floating_point() or not down.is_floating_point():
        raise InputError(f"{path}: {shown(name)} has factors of {up.dtype} and {down.dtype}.", hint="Damaged file.")
    try:
        return LowRank(up, down)
    except ValueError as error:
        if up.ndim == down.ndim == 2 and up.numel() and down.numel():
            hint = "Damaged file."
        raise InputError(f"{path}: {shown(name)} is no matrix of a U-Net: {error}.", hint=hint) from error


def make_token(path: Path, text: str, rows: Mapping[str, Any], initializer: str = "") -> ModifierToken:
    """A token of rows (n, width) or single vectors; raises InputError for a text or shape that cannot be one."""
    name_it = "Name it yourself: --token '<new1>'."
    if not text.strip() or text != text.strip() or not text.isprintable() or len(text) > LONGEST_TOKEN:
        raise InputError(f"{path} names a token {shown(text)}.", hint=name_it)
    if any(letter in text for letter in "/\\") or ".." in text:
        raise InputError(f"{path} names a token {text!r}, which looks like a path.", hint=name_it)
    shaped = {}
    for tower, row in rows.items():
        require_tensor(path, text, row)
        if row.ndim > 2:
            raise InputError(f"{path}: {text} has the shape {tuple(row.shape)}, no embedding's.", hint="Damaged file.")
        shaped[tower] = row.reshape(-1, row.shape[-1])
    if len({len(row) for row in shaped.values()}) != 1:
        raise InputError(f"{path}: {text} has different numbers of rows for its text encoders.", hint="Damaged file.")
    return ModifierToken(text, initializer if initializer.isprintable() else "", shaped)


# SDXL's full keys and values are 1.4 GB in fp32.
LARGEST = 4 << 30
_DEEPEST = 4


@dataclass(frozen=True)
class Contents:
    """A file's nested mapping of plain values and tensors, and the text header of a safetensors file."""

    path: Path
    values: Mapping[str, Any]
    header: Mapping[str, str]


def read_contents(path: Path) -> Contents:
    """Read a safetensors or torch file. Raises InputError for one that is too large, damaged, or holds code."""
    start = check_weight_file(path)
    size = path.stat().st_size
    if size > LARGEST:
        raise InputError(
            f"{path} is {size / 1e9:.1f} GB: too large for changed keys and values.", hint="Is it a whole model?"
        )
    if is_safetensors(start):
        header, tensors = read_tensors(path)
        return Contents(path, _checked(tensors, path, 1), header)
    values = read_torch_file(path)
    if not isinstance(values, Mapping):
        raise InputError(f"{path} holds a {type(values).__name__}, not named tensors.", hint="It is no weight file.")
    return Contents(path, _checked(values, path, _DEEPEST), {})


def shown(key: object) -> str:
    """A key of a file for a message: quoted, cut, without control characters."""
    return repr(key[:80]) if isinstance(key, str) else f"a {type(key).__name__}"


def _checked(values: Mapping[Any, Any], path: Path, depth: int) -> dict[str, Any]:
    """The mapping with its tensors as fp32; raises InputError for values that no weight file has."""
    for key in values:
        if not isinstance(key, str):
            raise InputError(f"{path} has a key that is no name, {shown(key)}.", hint="It is no weight file.")
    return {key: _value(value, f"{path}: {shown(key)}", path, depth) for key, value in values.items()}


def _value(value: Any, where: str, path: Path, depth: int) -> Any:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if depth and isinstance(value, Mapping):
        return _checked(value, path, depth - 1)
    if depth and isinstance(value, list | tuple):
        return [_value(item, where, path, depth - 1) for item in value]
    return _tensor(value, where)


def _tensor(value: Any, where: str) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise InputError(f"{where} is a {type(value).__name__}, not a tensor.", hint="It is no weight file.")
    plain = value.detach()
    if plain.layout != torch.strided or plain.is_quantized:
        raise InputError(f"{where} is no plain tensor.", hint="It is no weight file of a diffusion model.")
    if not plain.is_floating_point():
        return plain
    try:
        full = plain.float()
    except NotImplementedError as error:
        raise InputError(f"{where} is in {plain.dtype}.", hint="Give the file in fp16, bf16 or fp32.") from error
    if not full.isfinite().all():
        raise InputError(f"{where} holds NaN or infinite values.", hint="The training that made it has failed.")
    return full
