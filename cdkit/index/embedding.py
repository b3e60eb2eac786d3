"""The embed stage: every caption of an index folder embedded once, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError, writing
from cdkit.core.fingerprints import content_fingerprint
from cdkit.core.formatting import json_text
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, Engine, TextEncoder
from cdkit.core.shards import Dataset, finished_facts, open_shard, part_name, parts, require_keys
from cdkit.core.storage import Folder, SourceFile
from cdkit.index.embedding_files import embedding_shard
from cdkit.index.records import read_embeddings

if TYPE_CHECKING:
    import pyarrow as pa

    from cdkit.encoders.text_tower import TowerTextEncoder
    from cdkit.index.shard_progress import ShardCounter

EMBEDDINGS = "embeddings"
# Captions sorted by length together, and the most that a kill costs. Part of the output's bytes: it decides which
# captions share a batch.
BLOCK_ROWS = 1 << 12
IMPORT_AGAIN = "Import the captions again with --force."
UNFINISHED = "unfinished"
FORMAT = 2


@dataclass(frozen=True)
class ShardJob:
    """One shard of captions to embed, and all that a worker anywhere needs for it."""

    captions: Path
    target: Path
    encoder: str
    precision: str
    device: str
    fingerprint: str

    @property
    def blocks(self) -> Path:
        """Where finished blocks wait for the others."""
        return self.target.parent / UNFINISHED / self.target.stem

    def block(self, number: int) -> Path:
        return self.blocks / part_name(number)

    def block_mark(self, number: int) -> str:
        return f"{self.fingerprint}-{number}"


def embed_captions(
    captions: Path,
    out: Folder,
    encoder: str,
    *,
    context: Context,
    precision: str = "auto",
    device: str | None = None,
) -> Dataset:
    """Write out/part-NNNNN.parquet (caption_id, embedding float16 [d]) for every part of the `captions` folder.

    Blocks of a shard wait in out/unfinished until all are there. A finished shard or block is recognised by what
    decides it (its captions' content, the encoder's weights, the precision), so other settings and interruptions
    never cost a second embedding. Shards without captions any more are removed.
    Raises InputError naming the shard when it is damaged or the encoder gives NaN; nothing of that shard is written.
    """
    from cdkit.core.machine import choose_device
    from cdkit.encoders import resolve_precision

    sources = parts(captions)
    if not sources:
        raise InputError(f"{captions} holds no captions.", hint="Import captions first: cdkit index import.")
    local, chosen = context.engine.name == "local", None if device == "auto" else device
    # Another engine's workers have what its cluster has, not what this machine has.
    place = str(choose_device(chosen)) if local else chosen or ("cuda" if context.engine.gpus else "cpu")
    numbers = resolve_precision(precision, place)
    # Workers load their own encoder; this process then needs only the facts, not a place on a GPU.
    spread = not local or (chosen is None and context.engine.gpus > 1)
    here, format_here = ("cpu", "fp32") if spread else (place, numbers)
    try:
        loaded = worker_encoder(encoder, here, format_here)
        jobs = [
            ShardJob(
                captions=source,
                target=out / source.name,
                encoder=encoder,
                precision=numbers,
                device=place,
                fingerprint=shard_fingerprint(source, loaded.weights_hash(), numbers),
            )
            for source in sources
        ]
        out.remove([path.name for path in parts(out.path) if path.name not in {source.name for source in sources}])
        facts = _run(jobs, context, spread)
        out.remove([UNFINISHED])
        described = {**describe_encoder(loaded), "precision": numbers}
    finally:
        worker_encoder.cache_clear()
    totals = {key: sum(int(fact[key]) for fact in facts) for key in ("n", "truncated", "tokens")}
    if totals["truncated"]:
        context.progress.note(
            f"{totals['truncated']:,} of {totals['n']:,} captions are longer than the encoder's "
            f"{loaded.context_length} tokens and were truncated."
        )
    details = {"encoder": described, "truncated": totals["truncated"], "tokens": totals["tokens"]}
    return Dataset(EMBEDDINGS, out.path, Counts(read=totals["n"], kept=totals["n"]), details)


def describe_encoder(encoder: TextEncoder) -> dict[str, Any]:
    """The manifest's `encoder` entry: what a later search is checked against."""
    from cdkit.encoders import ENCODING

    return {
        "spec": encoder.spec,
        "weights": encoder.weights_hash(),
        "encoding": ENCODING,
        "dimension": encoder.dimension,
        "context_length": encoder.context_length,
        "default_threshold": encoder.default_threshold,
    }


def shard_fingerprint(captions: Path, weights: str, precision: str) -> str:
    """What decides the bytes of one shard of embeddings, in hex."""
    from cdkit.encoders import ENCODING

    content = content_fingerprint(SourceFile(str(captions), captions.name, captions.stat().st_size))
    return hashlib.sha256(
        json_text([FORMAT, ENCODING, content, weights, precision], ascii_only=True).encode()
    ).hexdigest()


@lru_cache(maxsize=1)
def worker_encoder(spec: str, device: str, precision: str) -> TowerTextEncoder:
    """The encoder of this process: loaded for the first shard, kept for the others."""
    from cdkit.encoders import load_text_encoder

    return load_text_encoder(spec, device=device, precision=precision)


def _run(jobs: Sequence[ShardJob], context: Context, spread: bool) -> list[dict[str, Any]]:
    """Embed what is not done yet; the facts of all shards, in order."""
    from cdkit.index.shard_progress import watched_shards

    known = {job.target: finished_facts(job.target, job.fingerprint) for job in jobs}
    waiting = [job for job in jobs if known[job.target] is None]
    left = {job.target: _rows(job.captions) - _finished_rows(job) for job in waiting}
    with (
        context.progress.task("embedding", sum(left.values()), unit="captions") as task,
        watched_shards(task, [job.target for job in waiting]) as watch,
    ):
        for job, facts in _outcomes(waiting, context.engine, spread):
            known[job.target] = facts
            watch.finish(job.target, left[job.target])
    return [facts for facts in known.values() if facts is not None]


def _outcomes(jobs: Sequence[ShardJob], engine: Engine, spread: bool) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Run the jobs on the engine's workers, or in this process, whose encoder uses all its cores or its one GPU."""
    if spread:
        on_gpu = any(job.device.startswith("cuda") for job in jobs)
        for outcome in engine.map(embed_shard, jobs, label="embed", gpu=on_gpu):
            yield outcome.item, outcome.unwrap()
        return
    with _threads(engine.workers):
        for job in jobs:
            yield job, embed_shard(job)


def embed_shard(job: ShardJob) -> dict[str, Any]:
    """Embed one shard and write it atomically; returns its facts. A worker's whole task."""
    from cdkit.index.shard_progress import ShardCounter

    done = finished_facts(job.target, job.fingerprint)
    if done is not None:
        return done
    encoder = worker_encoder(job.encoder, job.device, job.precision)
    try:
        with writing(job.target.parent):
            job.target.parent.mkdir(parents=True, exist_ok=True)
            return _write(job, encoder, ShardCounter(job.target))
    except InputError as error:
        if str(job.captions) in error.message:
            raise
        raise InputError(f"{job.captions}: {error.message}", hint=error.hint) from error


def _write(job: ShardJob, encoder: TowerTextEncoder, counter: ShardCounter) -> dict[str, Any]:
    """Embed the blocks that are not there yet, then join all of them into the shard."""
    facts = {"n": 0, "truncated": 0, "tokens": 0}
    paths = []
    for number, table in enumerate(_blocks(job.captions)):
        paths.append(job.block(number))
        for key, value in _block(paths[-1], job.block_mark(number), table, encoder, counter).items():
            facts[key] += value
    with embedding_shard(job.target, encoder.dimension, fingerprint=job.fingerprint, facts=facts) as writer:
        for ids, vectors in read_embeddings(paths):
            writer.write(ids, vectors)
    Folder(job.blocks.parent).remove([job.blocks.name])
    return facts


def _block(
    path: Path, fingerprint: str, table: pa.Table, encoder: TowerTextEncoder, counter: ShardCounter
) -> dict[str, int]:
    done = finished_facts(path, fingerprint)
    if done is not None:
        return done
    tokens = encoder.tokenize(table["caption"].to_pylist())
    vectors = encoder.encode_tokens(tokens, advance=counter.advance)
    facts = {
        "n": len(vectors),
        "truncated": int((tokens.full_lengths > encoder.context_length).sum()),
        "tokens": int(tokens.full_lengths.sum()),
    }
    with embedding_shard(path, encoder.dimension, fingerprint=fingerprint, facts=facts) as writer:
        writer.write(table["caption_id"].to_numpy(), vectors)
    return facts


def _blocks(path: Path) -> Iterator[pa.Table]:
    """The captions of a shard in tables of exactly BLOCK_ROWS (the last one shorter), whatever its row groups."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    rows = 0
    with open_shard(path, "captions", hint=IMPORT_AGAIN) as file:
        for batch in file.iter_batches(BLOCK_ROWS, columns=["caption_id", "caption"]):
            held.append(batch)
            rows += len(batch)
            if rows >= BLOCK_ROWS:
                table = pa.Table.from_batches(held)
                yield require_keys(table.slice(0, BLOCK_ROWS), path, hint=IMPORT_AGAIN)
                rest = table.slice(BLOCK_ROWS)
                held, rows = rest.to_batches(), len(rest)
    if rows:
        yield require_keys(pa.Table.from_batches(held), path, hint=IMPORT_AGAIN)


def _finished_rows(job: ShardJob) -> int:
    """Captions of an unfinished shard that a killed run has embedded."""
    facts = (finished_facts(job.block(number), job.block_mark(number)) for number in range(len(parts(job.blocks))))
    return sum(int(fact["n"]) for fact in facts if fact is not None)


def _rows(path: Path) -> int:
    with open_shard(path, "captions", hint=IMPORT_AGAIN) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _threads(workers: int) -> Iterator[None]:
    """At most `workers` torch threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, workers)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
