"""The import stage: pools as they are in the wild, into distinct captions, their image rows, and rejects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cdkit.captions.bucket_files import close_buckets
from cdkit.captions.bucketing import BucketingJob, FileGroup, bucket_group, combined
from cdkit.captions.config import ImportConfig
from cdkit.captions.deduplication import DeduplicationJob, deduplicate_shard
from cdkit.captions.reading import inspect
from cdkit.core.columns import ColumnNames
from cdkit.core.errors import CdkitError, InputError
from cdkit.core.fingerprints import Input
from cdkit.core.formatting import printable
from cdkit.core.manifest import Counts
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, merge_counts
from cdkit.core.storage import Folder, SourceFile

BYTES_PER_SHARD = 4 << 20
MAX_SHARDS = 1024
GROUP_BYTES = 64 << 20
# Roughly what uncompressed text takes against the same rows as compressed parquet.
TEXT_SHRINKS = 3
GIB = 1 << 30
MIN_WORKER_MEMORY = 256 << 20
Item = TypeVar("Item")
Value = TypeVar("Value")


def import_captions(config: ImportConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Read, clean, filter, deduplicate and partition pools into captions/, image_rows/ and rejects/ of `out`.

    Raises InputError for files that cannot be read (all of them named), for an empty pool, and when no row is kept.
    """
    # A stage that extends this one passes its own, larger config.
    config = ImportConfig.model_validate({name: getattr(config, name) for name in ImportConfig.model_fields})
    files = inputs["captions"].files
    fingerprint = context.fingerprint
    groups, shards = file_groups(files), shard_count(files)
    second = DeduplicationJob(out.path, fingerprint, len(groups))
    shard_facts = {shard: second.finished(shard) for shard in range(shards)}
    buckets_needed = None in shard_facts.values()
    file_facts = _phase_one(config, groups, shards, buckets_needed, fingerprint, out, context)
    _check_not_empty(file_facts, files)
    pending = [shard for shard, facts in shard_facts.items() if facts is None]
    buckets = tuple((out / "buckets" / f"part-{group.number:05d}.arrow") for group in groups)
    work = partial(deduplicate_shard, job=replace(second, buckets=buckets))
    try:
        shard_facts.update(_run(context, work, pending, "deduplicating", [1.0] * len(pending), "shards"))
    finally:
        close_buckets()
    out.remove(["buckets"])
    credentials = sum(facts["credentials"] for facts in file_facts)
    if credentials:
        context.progress.note(f"{credentials:,} URLs held a user name or password: they are kept without.")
    return _dataset(out, file_facts, [facts for facts in shard_facts.values() if facts is not None])


def shard_count(files: Sequence[SourceFile]) -> int:
    """How many shards a pool gets: a power of two from 1 to 1024 by its size alone."""
    weight = sum(_weight(source) for source in files)
    shards = 1
    while shards < MAX_SHARDS and shards * BYTES_PER_SHARD < weight:
        shards *= 2
    return shards


def file_groups(files: Sequence[SourceFile]) -> list[FileGroup]:
    """Consecutive files that one worker reads together, so that thousands of small files are not as many units."""
    limit = min(GROUP_BYTES, max(BYTES_PER_SHARD, sum(_weight(source) for source in files) // 64))
    groups: list[list[tuple[int, str, SourceFile]]] = []
    size = 0
    for number, (label, source) in enumerate(zip(labels_of(files), files, strict=True)):
        if not groups or size + _weight(source) > limit:
            groups.append([])
            size = 0
        groups[-1].append((number, label, source))
        size += _weight(source)
    return [FileGroup(number, tuple(group)) for number, group in enumerate(groups)]


def labels_of(files: Sequence[SourceFile]) -> list[str]:
    """What `source` says of each file: its name as it can be shown, numbered when an earlier file has the same one."""
    seen: dict[str, int] = {}
    labels = []
    for name in (printable(source.name) for source in files):
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return labels


def _weight(source: SourceFile) -> int:
    plain_text = source.name.lower().endswith((".csv", ".tsv", ".jsonl", ".ndjson"))
    return source.size // TEXT_SHRINKS if plain_text else source.size


def _phase_one(
    config: ImportConfig,
    groups: Sequence[FileGroup],
    shards: int,
    buckets_needed: bool,
    fingerprint: str,
    out: Folder,
    context: Context,
) -> list[dict[str, Any]]:
    """Facts of every source file, in input order; groups that are not done yet are read."""
    job = BucketingJob(config, out.path, fingerprint, shards, 1, 0)
    file_facts = {group: job.finished(group, buckets_needed=buckets_needed) for group in groups}
    pending = [group for group, facts in file_facts.items() if facts is None]
    if pending:
        _check_layouts(pending, config, context)
        job = replace(
            job, threads=max(1, context.engine.workers // len(pending)), memory=_worker_memory(config, context)
        )
        sizes = [float(sum(source.size for _, _, source in group.files)) for group in pending]
        file_facts.update(_run(context, partial(bucket_group, job=job), pending, "reading", sizes, "bytes"))
    return [facts for group in groups for facts in file_facts[group] or []]


def _worker_memory(config: ImportConfig, context: Context) -> int:
    total = GIB * context.engine.workers if config.memory_gib is None else int(config.memory_gib * GIB)
    return max(MIN_WORKER_MEMORY, total // context.engine.workers)


def _check_layouts(groups: Sequence[FileGroup], config: ImportConfig, context: Context) -> None:
    """Look into every local file before hours are spent on the first; say what was detected."""
    problems: list[CdkitError] = []
    detected: dict[str, int] = {}
    for _, _, source in (entry for group in groups for entry in group.files):
        if not source.is_local:
            continue
        try:
            table = inspect(source, Path(source.url), config)
        except CdkitError as problem:
            problems.append(problem)
            continue
        said = table.layout.describe(table.names) if table.layout.columns else "lines that are no rows"
        said = "no rows" if table.empty else said
        if table.layout.pool == "laion2b" and {"sample_id", "license"} <= ColumnNames(table.names).folded:
            said += "; for original LAION-400M files, whose HEIGHT and WIDTH are swapped, add --pool laion400m"
        detected[said] = detected.get(said, 0) + 1
    if problems:
        raise combined(problems)
    if config.pool is None:
        for said, number in detected.items():
            context.progress.note(f"{number} file(s) read as {said}")


def _run(
    context: Context,
    work: Callable[[Item], Value],
    items: Sequence[Item],
    label: str,
    amounts: Sequence[float],
    unit: str,
) -> dict[Item, Value]:
    """Run `work` on every item; raises one error that lists all input problems, once the others are done."""
    values: dict[Item, Value] = {}
    problems: list[CdkitError] = []
    with context.progress.task(label, sum(amounts), unit=unit) as task:
        for amount, outcome in zip(amounts, context.engine.map(work, items, label=label), strict=True):
            if isinstance(outcome.error, InputError):
                problems.append(outcome.error)
            else:
                values[outcome.item] = outcome.unwrap()
            task.advance(amount)
    if problems:
        raise combined(problems)
    return values


def _check_not_empty(file_facts: Sequence[Mapping[str, Any]], files: Sequence[SourceFile]) -> None:
    if sum(facts["in"] for facts in file_facts) == 0:
        raise InputError(f"The pool is empty: {len(files)} file(s) without a row.", hint="Check the path to the pool.")
    if sum(facts["kept"] for facts in file_facts) == 0:
        reasons = merge_counts([facts["rejected"] for facts in file_facts])
        listed = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        raise InputError(
            f"No row of the pool was kept ({listed}).",
            hint="See rejects/ in the output folder; check --caption-column and --url-column, or relax the limits "
            "(--keep-unrated, --nsfw-limit, --max-punsafe, --min-side).",
        )


def _dataset(out: Folder, file_facts: Sequence[dict[str, Any]], shard_facts: Sequence[Mapping[str, Any]]) -> Dataset:
    """Counts and details for the manifest, from the facts in the shards alone."""
    files = [{**facts, "rejected": dict(facts["rejected"])} for facts in file_facts]
    for facts in shard_facts:
        for number, rows in facts["id_collision"].items():
            entry = files[int(number)]
            entry["rejected"]["id_collision"] = entry["rejected"].get("id_collision", 0) + rows
            entry["kept"] -= rows
    rows = sum(facts["rows"] for facts in shard_facts)
    counts = Counts(sum(facts["in"] for facts in files), rows, merge_counts([facts["rejected"] for facts in files]))
    details = {
        "captions": sum(facts["captions"] for facts in shard_facts),
        "rows": rows,
        "shards": len(shard_facts),
        "impossible": merge_counts([facts["impossible"] for facts in files]),
        "credentials": sum(facts["credentials"] for facts in files),
        "files": files,
    }
    return Dataset("captions", out.path, counts, details)
