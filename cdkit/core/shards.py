"""Shards: schemas of the folders cdkit writes, Parquet that knows whether it is done, and safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.file_kinds import check_weight_file, is_safetensors, require_file
from cdkit.core.formatting import first_line, json_text
from cdkit.core.manifest import Counts
from cdkit.core.storage import atomic_path
from cdkit.core.text import is_text

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch


FINGERPRINT_KEY = "cdkit.fingerprint"
FACTS_KEY = "cdkit.facts"
AGAIN = "Make the folder again (the command that made it, with --force), or restore the file from a copy."
# Kinds whose folders are called like them, and those whose rows have a caption each.
CHECKED_KINDS = frozenset({"captions", "image_rows", "embeddings", "removed"})
KEYED_KINDS = CHECKED_KINDS - {"removed"}
# Columns that folders of earlier versions do not have: nothing is known of them there.
LATER_COLUMNS = frozenset({"licence", "attribution"})


@dataclass(frozen=True)
class Dataset:
    """What a stage produced: its folder, the row counts, facts for the manifest, and why it is short if it is.

    dropped: stages it extends whose own result it did not keep. clocks: what this run took, for the manifest's `run`;
    it leaves out what an interrupted run had done.
    """

    kind: str
    folder: Path
    counts: Counts = field(default_factory=Counts)
    details: dict[str, Any] = field(default_factory=dict)
    shortfall: str = ""
    dropped: tuple[str, ...] = ()
    clocks: dict[str, float] = field(default_factory=dict)


@cache
def schema(kind: str) -> pa.Schema:
    """The Arrow schema of a dataset kind; KeyError for a kind that has none."""
    import pyarrow as pa

    text = pa.string()
    sides = [("width", pa.int32()), ("height", pa.int32())]
    likeness = [("caption_id", pa.int64()), ("caption", text), ("similarity", pa.float32())]
    # What a pool says of an image that goes with it into a set.
    stated = [("nsfw", text), ("punsafe", pa.float32()), ("licence", text), ("attribution", text)]
    schemas = {
        "captions": [("caption_id", pa.int64()), ("caption", text), ("rows", pa.int32())],
        "image_rows": [
            ("caption_id", pa.int64()),
            ("url", text),
            *sides,
            ("nsfw", text),
            ("pool_similarity", pa.float32()),
            ("punsafe", pa.float32()),
            ("pwatermark", pa.float32()),
            ("md5", text),
            ("licence", text),
            ("attribution", text),
            ("source", text),
        ],
        "import_rejects": [("source", text), ("row", pa.int64()), ("reason", text), ("value", text)],
        "candidates": [
            ("query", text),
            *likeness,
            ("url", text),
            *sides,
            ("md5", text),
            ("source", text),
            *stated,
            ("photo", text),
            ("photo_similarity", pa.float32()),
        ],
        "regularization_images": [
            ("key", text),
            ("image", pa.struct([("bytes", pa.binary()), ("path", text)])),
            ("caption", text),
            ("similarity", pa.float32()),
            ("url", text),
            *sides,
            ("sha256", text),
            ("phash", text),
            ("source", text),
            ("query", text),
            *stated,
        ],
        "retrieval_rejects": [
            ("url", text),
            *likeness,
            ("reason", text),
            ("status", pa.int32()),
            ("detail", text),
            ("sha256", text),
            ("source", text),
        ],
        "embeddings": [("caption_id", pa.int64()), ("embedding", pa.list_(pa.float16(), 1))],
        "removed": [("caption_id", pa.int64()), ("url", text)],
        "token_counts": [("token_id", pa.int32()), ("token", text), ("count", pa.int64())],
    }
    return pa.schema(schemas[kind])


def part_name(index: int) -> str:
    """`part-00000.parquet` for shard 0."""
    return f"part-{index:05d}.parquet"


def parts(folder: Path) -> list[Path]:
    """The finished shards of a dataset folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def write_shard(path: Path, table: pa.Table, *, fingerprint: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write one zstd Parquet shard atomically, carrying its fingerprint and `facts` in the file metadata."""
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), **shard_metadata(fingerprint, facts or {})}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def shard_metadata(fingerprint: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """The key–value metadata that marks a shard as done."""
    return {FINGERPRINT_KEY: fingerprint, FACTS_KEY: json_text(facts, sort_keys=True)}


def finished_facts(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """The facts of a shard made under `fingerprint`; None when it is missing, damaged or from something else.

    Without a fingerprint nothing counts as done.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = (pq.read_metadata(path).metadata or {}) if path.is_file() else {}  # a pipe would hang
        if not fingerprint or metadata.get(FINGERPRINT_KEY.encode(), b"").decode() != fingerprint:
            return None
        facts = json.loads(metadata.get(FACTS_KEY.encode(), b"{}"))
    except (OSError, pa.ArrowException, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


@contextmanager
def open_shard(path: Path, kind: str | None = None, *, hint: str = AGAIN) -> Iterator[pq.ParquetFile]:
    """A shard, open to read; kind: what it has to be the columns of.

    Raises InputError when it is missing, no file, of other columns, or damaged, also when that shows inside the block.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path, hint=hint)
    if not is_text(str(path)):
        raise InputError(f"{path} cannot be opened by Arrow.", hint="Rename its folder: its name is not UTF-8.")
    try:
        with pq.ParquetFile(path) as file:
            if kind is not None and (problem := _wrong_columns(file.schema_arrow, kind)):
                raise InputError(f"{path} holds no {kind.replace('_', ' ')}: {problem}.", hint=hint)
            yield file
    except (OSError, pa.ArrowException, EOFError, UnicodeError) as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}", hint=hint) from error


def _wrong_columns(fields: pa.Schema, kind: str) -> str:
    """What is wrong with the columns of a shard of `kind`; empty when nothing is."""
    import pyarrow as pa

    for field_ in schema(kind):
        if field_.name not in fields.names:
            if field_.name in LATER_COLUMNS:
                continue
            return f"there is no column {field_.name!r}"
        kind_held = fields.field(field_.name).type
        # Vectors are of any dimension, which their encoder decides.
        is_vector = pa.types.is_fixed_size_list(field_.type) and pa.types.is_fixed_size_list(kind_held)
        if kind_held != field_.type and not (is_vector and kind_held.value_type == field_.type.value_type):
            return f"column {field_.name!r} holds {kind_held} values, not {field_.type}"
    return ""


def read_parts(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Each shard of a dataset folder as a table; raises InputError when there is none or one is damaged."""
    paths = parts(folder)
    if not paths:
        raise InputError(f"{folder} holds no shards.", hint="Run the stage that makes it first.")
    for path in paths:
        yield read_shard(path, columns, kind=kind_of(folder))


def kind_of(folder: Path) -> str | None:
    """The kind of the shards in a folder that is called like it; None for other folders, whose shards may be any."""
    return folder.name if folder.name in CHECKED_KINDS else None


def read_shard(
    path: Path, columns: Sequence[str] | None = None, *, kind: str | None = None, hint: str = AGAIN
) -> pa.Table:
    """A shard as a table; see open_shard. Raises InputError also where captions or their ids are null."""
    with open_shard(path, kind, hint=hint) as file:
        table = file.read(columns=list(columns) if columns else None)
    return require_keys(table, path, hint=hint) if kind in KEYED_KINDS else table


def require_keys(table: pa.Table, path: Path, *, hint: str = AGAIN) -> pa.Table:
    """`table`; raises InputError when a caption or its id is null in it."""
    for name in ("caption_id", "caption"):
        if name in table.column_names and table.column(name).null_count:
            raise InputError(f"{path} is damaged: it has rows without a {name.replace('_', ' ')}.", hint=hint)
    return table


def merge_counts(tallies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Sum of several reason → count tables, zero entries dropped."""
    total: dict[str, int] = {}
    for tally in tallies:
        for reason, number in tally.items():
            total[reason] = total.get(reason, 0) + number
    return {reason: number for reason, number in sorted(total.items()) if number}


# The header of SDXL's whole U-Net has 0.2 MB.
LARGEST_HEADER = 16 << 20
MOST_DIMENSIONS = 8
_DAMAGED = "It may be cut short or damaged: make it again, or download it again."


def read_tensor_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The texts in a safetensors file's header, and every tensor's shape by name; no tensor is read.

    Raises InputError for a file that is no safetensors file, is cut short, or whose header says what cannot be.
    """
    if not is_safetensors(check_weight_file(path)):
        raise InputError(f"{path} is no safetensors file.", hint="Files of other tools come in by cdkit delta import.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > min(size - 8, LARGEST_HEADER):
            what = "is cut short" if length <= LARGEST_HEADER else "is damaged"
            raise InputError(f"{path} {what}: its header should have {length:,} bytes.", hint=_DAMAGED)
        content = handle.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_distinct)
        texts = header.pop("__metadata__", {})
        shapes = {name: _shape(name, entry) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} has a damaged header: {first_line(error)}", hint=_DAMAGED) from error
    if end > size:
        raise InputError(f"{path} is cut short: {size:,} of {end:,} bytes are there.", hint="Download it again.")
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f"{path} has a damaged header: its texts are no texts.", hint=_DAMAGED)
    return texts, shapes


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """The texts in a safetensors file's header, and its tensors as they are stored.

    Raises InputError as `read_tensor_header` does, and for offsets and types that do not fit.
    """
    from safetensors.torch import load_file

    texts, _ = read_tensor_header(path)
    try:
        return texts, load_file(str(path))
    except MemoryError:
        raise
    # Whatever a damaged or hostile file makes the library raise, it is the file's fault.
    except Exception as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}", hint=_DAMAGED) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("it names something twice")
    return mapping


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    shape = entry["shape"]
    sound = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
    if not sound or not all(isinstance(side, int) and 0 <= side < 1 << 40 for side in shape):
        raise ValueError(f"{name[:80]!r} has an impossible shape")
    return tuple(shape)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], *, half: bool = False
) -> None:
    """Write tensors as fp32, or fp16 when `half`, atomically.

    Raises InputError, and writes nothing, when a value is NaN or infinite, or does not fit into fp16.
    """
    import torch
    from safetensors.torch import save_file

    stored = {}
    for name, tensor in tensors.items():
        full = tensor.detach().to("cpu").float()
        if not full.isfinite().all():
            raise InputError(f"{name} holds NaN or infinite values.", hint="Train again with a lower learning rate.")
        value = full.to(torch.float16) if half else full
        if not value.isfinite().all():
            raise InputError(
                f"{name} has values up to {float(full.abs().max()):.3g}: too large for fp16.",
                hint="Leave out --precision fp16.",
            )
        # A copy of its own: a view would carry the whole storage behind it.
        stored[name] = value.clone(memory_format=torch.contiguous_format)
    with atomic_path(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(stored, str(temporary), metadata=dict(header))
        _sort_header(temporary)
        # safetensors makes files that only their owner may read.
        os.chmod(temporary, mode)


def _sort_header(path: Path) -> None:
    """Put a file's header texts in the order of their names: safetensors writes them in a random one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        texts = header.pop("__metadata__", {})
        ordered = {"__metadata__": dict(sorted(texts.items())), **header}
        content = json_text(ordered, compact=True).encode()
        # Spaces fill a header up; where the tensors lie is counted from its end.
        if len(content) <= length:
            file.seek(8)
            file.write(content.ljust(length))
