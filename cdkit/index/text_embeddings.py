"""The embed stage: every caption of an index folder embedded once, shard by shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.datasets import Dataset, finished_facts, parts, shard_metadata
from cdkit.errors import InputError
from cdkit.manifest import Counts
from cdkit.protocols import Context, Engine, TextEncoder
from cdkit.storage import Folder, SourceFile, atomic_path, content_fingerprint, writing

if TYPE_CHECKING:
    import pyarrow as pa

    from cdkit.encoders.text_tower import TowerTextEncoder

EMBEDDINGS = "embeddings"
# Captions sorted by length together. Part of the output's bytes: it decides which captions share a batch.
WINDOW_ROWS = 1 << 16
# Rows read to look up one caption's embedding.
ROW_GROUP_ROWS = 1 << 12
FORMAT = 1


@dataclass(frozen=True)
class ShardJob:
    """One shard of captions to embed, and all that a worker anywhere needs for it."""

    captions: Path
    target: Path
    encoder: str
    precision: str
    device: str | None
    fingerprint: str


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

    A finished shard is recognised by what decides it (its captions' content, the encoder's weights, the precision),
    so other settings and interruptions never cost a second embedding. Shards without captions any more are removed.
    Raises InputError naming the shard when it is damaged or the encoder gives NaN; nothing of that shard is written.
    """
    from cdkit.encoders import resolve_device, resolve_precision

    sources = parts(captions)
    if not sources:
        raise InputError(f"{captions} holds no captions.", hint="Import captions first: cdkit index import.")
    numbers = resolve_precision(precision, resolve_device(device))
    devices = _devices(context.engine, device)
    # Many workers load their own encoder; this process then needs only the facts, not a place on a GPU.
    here = devices[0] if len(devices) == 1 and context.engine.name == "local" else "cpu"
    try:
        loaded = worker_encoder(encoder, here, numbers if here == devices[0] else "fp32")
        jobs = [
            ShardJob(
                captions=source,
                target=out / source.name,
                encoder=encoder,
                precision=numbers,
                device=devices[number % len(devices)],
                fingerprint=shard_fingerprint(source, loaded.weights_hash(), numbers),
            )
            for number, source in enumerate(sources)
        ]
        out.remove([path.name for path in parts(out.path) if path.name not in {source.name for source in sources}])
        facts = _run(jobs, context)
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
    return {
        "spec": encoder.spec,
        "weights": encoder.weights_hash(),
        "dimension": encoder.dimension,
        "context_length": encoder.context_length,
        "default_threshold": encoder.default_threshold,
    }


def shard_fingerprint(captions: Path, weights: str, precision: str) -> str:
    """What decides the bytes of one shard of embeddings, in hex."""
    content = content_fingerprint(SourceFile(str(captions), captions.name, captions.stat().st_size))
    return hashlib.sha256(json.dumps([FORMAT, content, weights, precision]).encode()).hexdigest()


@lru_cache(maxsize=1)
def worker_encoder(spec: str, device: str | None, precision: str) -> TowerTextEncoder:
    """The encoder of this process: loaded for the first shard, kept for the others."""
    from cdkit.encoders import load_text_encoder

    return load_text_encoder(spec, device=device, precision=precision)


def _devices(engine: Engine, device: str | None) -> list[str | None]:
    """Where shards go in turn: the device asked for, else every GPU here, else the CPU; cluster workers decide."""
    import torch

    if device is not None or engine.name != "local":
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def _run(jobs: Sequence[ShardJob], context: Context) -> list[dict[str, Any]]:
    """Embed what is not done yet; the facts of all shards, in order."""
    from cdkit.index.shard_progress import watched_shards

    known = {job.target: finished_facts(job.target, job.fingerprint) for job in jobs}
    waiting = [job for job in jobs if known[job.target] is None]
    total = sum(_rows(job.captions) for job in waiting)
    with (
        context.progress.task("embedding", total, unit="captions") as task,
        watched_shards(task, [job.target for job in waiting]) as watch,
    ):
        for job, facts in _spread(waiting, context.engine):
            known[job.target] = facts
            watch.finish(job.target, int(facts["n"]))
    return [facts for facts in known.values() if facts is not None]


def _spread(jobs: Sequence[ShardJob], engine: Engine) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Run the jobs where they belong: a cluster's tasks, one process per GPU, or this process on all its cores."""
    devices = sorted({str(job.device) for job in jobs})
    if engine.name != "local":
        yield from ((outcome.item, outcome.unwrap()) for outcome in engine.map(embed_shard, jobs, label="embed"))
    elif len(devices) > 1:
        from cdkit.engines.local import LocalEngine

        groups = [[job for job in jobs if job.device == device] for device in devices]
        for outcome in LocalEngine(len(groups)).map(embed_group, groups, label="embed"):
            yield from zip(outcome.item, outcome.unwrap(), strict=True)
    else:
        # Two processes would fight for the cores that one uses fully.
        with _threads(engine.workers):
            for job in jobs:
                yield job, embed_shard(job)


def embed_group(jobs: Sequence[ShardJob]) -> list[dict[str, Any]]:
    """The shards of one GPU, one after the other."""
    return [embed_shard(job) for job in jobs]


def embed_shard(job: ShardJob) -> dict[str, Any]:
    """Embed one shard and write it atomically; returns its facts. A worker's whole task."""
    from cdkit.index.shard_progress import ShardCounter

    done = finished_facts(job.target, job.fingerprint)
    if done is not None:
        return done
    encoder = worker_encoder(job.encoder, job.device, job.precision)
    try:
        with writing(job.target.parent):
            return _write(job, encoder, ShardCounter(job.target))
    except InputError as error:
        if str(job.captions) in error.message:
            raise
        raise InputError(f"{job.captions}: {error.message}", hint=error.hint) from error


def _write(job: ShardJob, encoder: TowerTextEncoder, counter: Any) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.schema(
        [("caption_id", pa.int64()), ("embedding", pa.list_(pa.float16(), encoder.dimension))],
    )
    facts = {"n": 0, "truncated": 0, "tokens": 0}
    # Neither compression nor a dictionary makes normalised float16 smaller.
    with (
        atomic_path(job.target) as temporary,
        pq.ParquetWriter(temporary, kind, compression="none", use_dictionary=False) as writer,
    ):
        for table in _windows(job.captions):
            tokens = encoder.tokenize(table["caption"].to_pylist())
            vectors = encoder.encode_tokens(tokens, advance=counter.advance)
            values = pa.array(vectors.astype("float16").reshape(-1), pa.float16())
            column = pa.FixedSizeListArray.from_arrays(values, encoder.dimension)
            writer.write_table(pa.table([table["caption_id"], column], schema=kind), row_group_size=ROW_GROUP_ROWS)
            facts["n"] += len(vectors)
            facts["truncated"] += int((tokens.full_lengths > encoder.context_length).sum())
            facts["tokens"] += int(tokens.full_lengths.sum())
        writer.add_key_value_metadata(shard_metadata(job.fingerprint, facts))
    return facts


def _windows(path: Path) -> Iterator[pa.Table]:
    """The captions of a shard in tables of exactly WINDOW_ROWS (the last one shorter), whatever its row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[pa.RecordBatch] = []
    rows = 0
    try:
        file = pq.ParquetFile(path)
        if not {"caption_id", "caption"} <= set(file.schema_arrow.names):
            raise InputError(f"{path} holds no captions.", hint="Import the captions again with --force.")
        for batch in file.iter_batches(WINDOW_ROWS, columns=["caption_id", "caption"]):
            held.append(batch)
            rows += len(batch)
            if rows >= WINDOW_ROWS:
                table = pa.Table.from_batches(held)
                yield table.slice(0, WINDOW_ROWS)
                rest = table.slice(WINDOW_ROWS)
                held, rows = rest.to_batches(), len(rest)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged: {error}", hint="Import the captions again with --force.") from error
    if rows:
        yield pa.Table.from_batches(held)


def _rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged: {error}", hint="Import the captions again with --force.") from error


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
