"""The embed stage: every caption of an index folder embedded once, shard by shard."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError
from cdkit.core.fingerprints import content_fingerprint
from cdkit.core.formatting import json_text
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context, Engine, TextEncoder
from cdkit.core.shards import Dataset, finished_facts, parts
from cdkit.core.storage import Folder, SourceFile
from cdkit.index.embedding_pipeline import (
    UNFINISHED,
    ShardJob,
    embed_group,
    embed_shards,
    finished_rows,
    shard_rows,
    worker_encoder,
)
from cdkit.index.shard_progress import watched_shards

EMBEDDINGS = "embeddings"
FORMAT = 3
# Groups of shards per worker: shards enough in each for a GPU to have the next one's captions before it needs them.
GROUPS_PER_WORKER = 8


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

    Windows of a large shard wait in out/unfinished until all are there. A finished shard or window is recognised by
    what decides it (its captions' content, the encoder's weights, the precision), so other settings never cost a
    second embedding, and an interruption costs the window under way and the one that waits to be written. Shards
    without captions any more are removed.
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
                processes=local and context.engine.workers > 1,
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
    described["precision_error"] = max((float(fact["precision_error"]) for fact in facts), default=0.0)
    reduced = [int(fact["batch_tokens"]) for fact in facts if "batch_tokens" in fact]
    if reduced:
        context.progress.note(
            f"The device has too little memory for its usual batches: some had {min(reduced):,} tokens, which takes "
            "longer."
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


def _run(jobs: Sequence[ShardJob], context: Context, spread: bool) -> list[dict[str, Any]]:
    """Embed what is not done yet; the facts of all shards, in order."""
    facts_of = {job.target: finished_facts(job.target, job.fingerprint) for job in jobs}
    waiting = [job for job in jobs if facts_of[job.target] is None]
    left = {job.target: shard_rows(job.captions) - finished_rows(job) for job in waiting}
    with (
        context.progress.task("embedding", sum(left.values()), unit="captions") as task,
        watched_shards(task, [job.target for job in waiting]) as watch,
    ):
        for job, facts in _outcomes(waiting, context.engine, spread):
            facts_of[job.target] = facts
            watch.finish(job.target, left[job.target])
    return [facts for facts in facts_of.values() if facts is not None]


def _outcomes(jobs: Sequence[ShardJob], engine: Engine, spread: bool) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Run the jobs on the engine's workers, or in this process, whose encoder uses all its cores or its one GPU."""
    if spread:
        on_gpu = any(job.device.startswith("cuda") for job in jobs)
        workers = max(1, engine.gpus if on_gpu else engine.workers)
        size = max(1, len(jobs) // (workers * GROUPS_PER_WORKER))
        groups = [tuple(jobs[start : start + size]) for start in range(0, len(jobs), size)]
        for outcome in engine.map(embed_group, groups, label="embed", gpu=on_gpu):
            yield from outcome.unwrap()
        return
    with _threads(engine.workers):
        yield from embed_shards(jobs, engine.workers)


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
