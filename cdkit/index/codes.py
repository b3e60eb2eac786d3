"""From stored embeddings to an index file: a random training sample, codes shard by shard, one file at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.core.machine import choose_device
from cdkit.core.protocols import Context
from cdkit.core.shards import FINGERPRINT_KEY, open_shard
from cdkit.core.storage import Folder, atomic_path, read_json, write_json
from cdkit.core.threads import threads
from cdkit.index.brute_force import TRAINING, read_sample, sampled
from cdkit.index.clustering import Tables, assign_and_encode, learn_tables, tensor_kernels
from cdkit.index.faiss_index import (
    assemble,
    encode,
    faiss_kernels,
    faiss_threads,
    grouped_lists,
    has_codebooks,
    inverted_file,
    new_exact,
    require_faiss,
    tables_of,
)
from cdkit.index.inverted_lists import CodeShard, code_shard_done, write_code_shard, write_inverted_index
from cdkit.index.layout import IndexSettings, Layout
from cdkit.index.records import read_ahead, read_embeddings

if TYPE_CHECKING:
    import numpy as np

CODES_FORMAT = 4
TRAINED_NAME = "trained.index"
TRAINED_FACTS = "trained.json"


@dataclass(frozen=True)
class Shards:
    """The embedding shards an index is made of: paths, rows and fingerprints, and the vectors' dimension."""

    paths: tuple[Path, ...]
    rows: tuple[int, ...]
    fingerprints: tuple[str, ...]
    dimension: int

    @property
    def count(self) -> int:
        return sum(self.rows)


def inspect_shards(paths: Sequence[Path]) -> Shards:
    """What the metadata of embedding shards says; raises InputError for a damaged one."""
    rows, fingerprints, dimension = [], [], 0
    for path in paths:
        with open_shard(path, "embeddings", hint="Delete it; run the same command again.") as handle:
            metadata = handle.metadata
            dimension = handle.schema_arrow.field("embedding").type.list_size
        rows.append(metadata.num_rows)
        fingerprints.append((metadata.metadata or {}).get(FINGERPRINT_KEY.encode(), b"").decode())
    if not sum(rows):
        raise InputError("There are no embeddings to index.", hint="Import and embed captions first.")
    return Shards(tuple(paths), tuple(rows), tuple(fingerprints), dimension)


def write_exact(path: Path, layout: Layout, shards: Shards) -> None:
    """An exact index over all shards; small by definition, so it is made in memory and again after a kill."""
    import faiss

    index = new_exact(layout)
    for shard in shards.paths:
        for ids, vectors in read_embeddings([shard]):
            _check_finite(vectors, str(shard))
            index.add_with_ids(vectors, ids)
    with atomic_path(path) as temporary:
        faiss.write_index(index, str(temporary))


def write_compressed(
    path: Path, layout: Layout, shards: Shards, held_out: np.ndarray, settings: IndexSettings, context: Context
) -> None:
    """Lists of codes over all shards, behind a rotation. Work in progress lies in building/ beside it, so a restart
    repeats neither the training nor a finished shard."""
    work = Folder(path.parent).sub("building")
    with threads(settings.threads):
        trained, fingerprint = trained_index(work, layout, shards, held_out, settings, context)
        codes = encode_shards(work, shards, fingerprint, settings, context)
        write_inverted_index(path, trained, codes)


def trained_index(
    work: Folder, layout: Layout, shards: Shards, held_out: np.ndarray, settings: IndexSettings, context: Context
) -> tuple[Any, str]:
    """The trained, empty index and its fingerprint; trained on a random sample, or read when that is done."""
    import faiss

    require_faiss()
    device = building_device(settings.device)
    made = [CODES_FORMAT, asdict(layout), list(shards.fingerprints), list(shards.rows), settings.seed]
    fingerprint = _digest([*made, settings.threads, device.partition(":")[0]])
    target, facts = work / TRAINED_NAME, work / TRAINED_FACTS
    if facts.exists() and target.exists() and read_json(facts) == fingerprint:
        return faiss.read_index(str(target)), fingerprint
    with context.progress.task("training", layout.training_points, unit="points") as task:
        sample = training_sample(shards, held_out, layout.training_points, settings.seed)
        index = assemble(layout, _learned(layout, sample, settings.seed, device, context))
        task.advance(layout.training_points)
    facts.unlink(missing_ok=True)
    with atomic_path(target) as temporary:
        faiss.write_index(index, str(temporary))
    write_json(facts, fingerprint)
    return index, fingerprint


def building_device(device: str | None) -> str:
    """Where an index is built: the CUDA device named, any there is for None, else the CPU."""
    chosen = choose_device(device)
    return str(chosen) if chosen.type == "cuda" else "cpu"


def _learned(layout: Layout, sample: np.ndarray, seed: int, device: str, context: Context) -> Tables:
    """The tables learned from `sample`, on the CPU where the GPU's memory does not hold it."""
    import torch

    code_bytes = 0 if layout.signs else layout.code_bytes
    learn = partial(learn_tables, reduced=layout.reduced, code_bytes=code_bytes, lists=layout.lists, seed=seed)
    points = torch.from_numpy(sample)
    if device != "cpu":
        try:
            return learn(points.to(device), kernels=tensor_kernels()).to("cpu")
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            context.progress.note(f"{len(sample):,} training points do not fit into the GPU: learning on the CPU.")
    return learn(points, kernels=faiss_kernels())


def training_sample(shards: Shards, held_out: np.ndarray, points: int, seed: int) -> np.ndarray:
    """About `points` embeddings (float16) at random, in random order, without those held out for measuring."""
    import numpy as np

    def member(ids: np.ndarray) -> np.ndarray:
        return sampled(ids, seed, TRAINING, points, shards.count) & ~np.isin(ids, held_out)

    chosen = []
    for shard, _, vectors in read_sample(shards.paths, member, points / shards.count, number="float16"):
        _check_finite(vectors, str(shard))
        chosen.append(vectors)
    sample = np.concatenate(chosen)
    np.random.default_rng(seed).shuffle(sample)
    return sample


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to turn one shard of embeddings into codes."""

    trained: Path
    codes: Path
    fingerprint: str
    threads: int
    device: str

    def target(self, embeddings: Path) -> Path:
        return self.codes / f"{embeddings.stem}.safetensors"

    def mark(self, fingerprint: str) -> str:
        return _digest([self.fingerprint, fingerprint])


def encode_shards(
    work: Folder, shards: Shards, fingerprint: str, settings: IndexSettings, context: Context
) -> list[CodeShard]:
    """Codes of every shard, those finished earlier kept; done on the engine, a worker per GPU where there are any."""
    device = building_device(settings.device)
    each = max(1, settings.threads // max(1, min(context.engine.workers, len(shards.paths))))
    job = EncodingJob(work / TRAINED_NAME, work.sub("codes").path, fingerprint, each, device)
    marks = {path: job.mark(mark) for path, mark in zip(shards.paths, shards.fingerprints, strict=True)}
    pending = [path for path in shards.paths if not code_shard_done(job.target(path), marks[path])]
    rows = dict(zip(shards.paths, shards.rows, strict=True))
    with context.progress.task("adding", sum(rows[path] for path in pending), unit="captions") as task:
        work_on = partial(encode_shard, job=job, marks=marks)
        for outcome in context.engine.map(work_on, pending, label="adding", gpu=device == "cuda"):
            outcome.unwrap()
            task.advance(rows[outcome.item])
    return [CodeShard(job.target(path)) for path in shards.paths]


def encode_shard(path: Path, *, job: EncodingJob, marks: dict[Path, str]) -> int:
    """Write the codes of one shard of embeddings; returns its rows. Raises InputError for NaN, naming the shard."""
    import numpy as np

    coder = _coder(job.trained, job.fingerprint, job.device)
    lists, ids, codes = [], [], []
    with faiss_threads(job.threads):
        for block_ids, vectors in read_ahead(read_embeddings([path], number=coder.number)):
            _check_finite(vectors, str(path))
            numbers, block_codes = coder.code(vectors)
            lists.append(numbers)
            ids.append(block_ids)
            codes.append(block_codes)
    write_code_shard(
        job.target(path),
        np.concatenate([np.empty(0, np.int64), *lists]),
        np.concatenate([np.empty(0, np.int64), *ids]),
        np.concatenate([np.empty((0, coder.code_bytes), np.uint8), *codes]),
        list_count=coder.lists,
        fingerprint=marks[path],
    )
    return sum(len(block) for block in ids)


@dataclass(frozen=True)
class _Coder:
    """Turns vectors into list numbers (int64 [n]) and codes (uint8 [n, code bytes]). number: the type it wants."""

    code: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    number: str
    lists: int
    code_bytes: int


@lru_cache(maxsize=1)
def _coder(path: Path, fingerprint: str, device: str) -> _Coder:
    """A worker reads the tables once for all its shards; the fingerprint tells one training from the next."""
    import faiss
    import torch

    index = faiss.read_index(str(path))
    ivf = inverted_file(index)
    if device == "cpu":
        if has_codebooks(index):
            # Not in the file; coding takes a third less with it.
            ivf.pq.sync_transposed_centroids()
        return _Coder(partial(encode, index, grouped=grouped_lists(index)), "float32", ivf.nlist, ivf.code_size)
    tables = tables_of(index).to(device)

    def code(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lists, codes = assign_and_encode(tables, torch.from_numpy(vectors).to(device), tensor_kernels())
        return lists.cpu().numpy(), codes.cpu().numpy()

    return _Coder(code, "float16", ivf.nlist, ivf.code_size)


def _check_finite(vectors: np.ndarray, where: str) -> None:
    import numpy as np

    if not np.isfinite(vectors).all():
        raise InputError(f"{where} holds NaN or infinity.", hint="Check the encoder's weights, delete the shard.")


def _digest(value: object) -> str:
    return hashlib.sha256(json_text(value, sort_keys=True, ascii_only=True).encode()).hexdigest()
