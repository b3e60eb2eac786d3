"""PyTorch files, read without running anything in them and without more memory than they are large.

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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from cdkit.core.errors import InputError
from cdkit.core.file_kinds import AGAIN, check_weight_file
from cdkit.core.formatting import first_line

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
