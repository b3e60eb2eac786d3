"""Phase one of import: a group of source files, cleaned and filtered, into one bucket file and one rejects shard."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.captions.bucket_files import (
    BucketWriter,
    RejectsWriter,
    bucket_schema,
    bucket_writer,
    is_finished,
    rejects_writer,
)
from cdkit.captions.digests import digests_of
from cdkit.captions.json_lines import needed_keys
from cdkit.captions.lines import check_whole
from cdkit.captions.reading import SourceTable, inspect, local_copy, with_keys
from cdkit.captions.relation import NeedsRepairError, keys_sql, reading_error, repaired_copy
from cdkit.captions.row_query import CHECKED, impossible_counts, rated_sql, rows_sql
from cdkit.core.errors import CdkitError, InputError, ResourceError, shortage, write_problem, writing
from cdkit.core.formatting import URL_USERINFO
from cdkit.core.shards import finished_facts, part_name, schema
from cdkit.core.storage import TEMPORARY_PREFIX, SourceFile

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from cdkit.captions.config import ImportConfig

BATCH_ROWS = 1 << 17


@dataclass(frozen=True)
class FileGroup:
    """Source files that one worker reads in one go; `files` are (number, label, file), numbers in input order."""

    number: int
    files: tuple[tuple[int, str, SourceFile], ...]


@dataclass(frozen=True)
class BucketingJob:
    """What every group of phase one needs to know. memory: bytes for one worker."""

    config: ImportConfig
    out: Path
    fingerprint: str
    shards: int
    threads: int
    memory: int

    def bucket_path(self, group: FileGroup) -> Path:
        return (self.out / "buckets" / part_name(group.number)).with_suffix(".arrow")

    def rejects_path(self, group: FileGroup) -> Path:
        return self.out / "rejects" / part_name(group.number)

    def finished(self, group: FileGroup, *, buckets_needed: bool) -> list[dict[str, Any]] | None:
        """The facts of each file of a finished group; None when it has to be read (again)."""
        facts = finished_facts(self.rejects_path(group), self.fingerprint)
        if facts is None or (buckets_needed and not is_finished(self.bucket_path(group), self.fingerprint)):
            return None
        return list(facts["files"])


@dataclass
class FileTally:
    """Rows of one source file so far."""

    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    impossible: list[int] = field(default_factory=lambda: [0] * (1 << len(CHECKED)))
    credentials: int = 0

    def facts(self, table: SourceTable, label: str, *, rated: bool) -> dict[str, Any]:
        return {
            "file": label,
            "pool": table.layout.describe(table.names) if table.layout.columns else "none",
            "rated": rated,
            "in": self.read,
            "kept": self.read - sum(self.rejected.values()),
            "rejected": dict(sorted(self.rejected.items())),
            "impossible": impossible_counts(self.impossible),
            "credentials": self.credentials,
            "repaired": table.repaired,
        }


def bucket_group(group: FileGroup, job: BucketingJob) -> list[dict[str, Any]]:
    """Read one group of files; returns the facts of each, which its rejects shard carries too.

    Raises InputError for a file that cannot be read; then nothing of the group is left behind.
    """
    # A worker that outlives its killed run must not share the folder with the one that does its work again.
    work = job.out / "buckets" / f"{TEMPORARY_PREFIX}work-{group.number:05d}-{os.getpid()}"
    repair: set[int] = set()
    try:
        with writing(job.out):
            while True:
                try:
                    return _read_group(group, job, work, repair)
                except _FileNeedsRepairError as damaged:
                    # What was written of the group is thrown away and the group read again, this file by its copy.
                    repair.add(damaged.number)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _FileNeedsRepairError(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _read_group(group: FileGroup, job: BucketingJob, work: Path, repair: set[int]) -> list[dict[str, Any]]:
    labels = {number: label for number, label, _ in group.files}
    facts: list[dict[str, Any]] = []
    problems: list[CdkitError] = []
    bucket_path = job.bucket_path(group)
    with (
        _connection(job, work) as connection,
        rejects_writer(job.rejects_path(group), job.fingerprint, facts) as rejects,
        bucket_writer(
            bucket_path, shards=job.shards, fingerprint=job.fingerprint, labels=labels, max_bytes=job.memory // 6
        ) as bucket,
    ):
        for number, label, source in group.files:
            try:
                with local_copy(source, work) as path:
                    table = inspect(source, path, job.config)
                    check_whole(table.name, path, table.compression)
                    by_row = number in repair or table.by_row
                    if table.kind == "jsonl" and not by_row and not table.empty:
                        table = _with_every_key(connection, table, job.config)
                    if not table.empty and (by_row or table.by_row):
                        table = repaired_copy(table, work / "repaired.parquet", job.config)
                    reader = _FileReader(connection, table, number, label, job.config)
                    facts.append(reader.read(bucket, rejects))
            except NeedsRepairError:
                raise _FileNeedsRepairError(number) from None
            except InputError as problem:
                problems.append(problem)
        if problems:
            raise combined(problems)
    return facts


def combined(problems: list[CdkitError]) -> CdkitError:
    """One error that lists every problem; the hint is the first one's."""
    if len(problems) == 1:
        return problems[0]
    return type(problems[0])("\n".join(problem.message for problem in problems), hint=problems[0].hint)


@contextmanager
def _connection(job: BucketingJob, work: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    work.mkdir(parents=True, exist_ok=True)
    settings = {
        "threads": job.threads,
        "memory_limit": f"{job.memory // 2 >> 20}MiB",
        "temp_directory": str(work / "duckdb"),
        # Nothing is ever downloaded behind the user's back.
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    connection = duckdb.connect(config=settings)
    try:
        # DuckDB draws on stdout by itself when a query takes long.
        connection.execute("SET enable_progress_bar = false")
        # It decides comparisons by what a Parquet file says of its values, which leaves NaN out and may be wrong.
        connection.execute("SET disabled_optimizers = 'statistics_propagation'")
        yield connection
    finally:
        connection.close()


def _with_every_key(connection: duckdb.DuckDBPyConnection, table: SourceTable, config: ImportConfig) -> SourceTable:
    """A jsonl file by all its keys: a rating that first appears in the last line counts, however it is spelt."""
    more: set[str] = set()
    with _reading(table):
        keys = connection.execute(keys_sql(table))
        while rows := keys.fetchmany(BATCH_ROWS):
            more |= needed_keys((key for (key,) in rows), config)
    return with_keys(table, tuple(sorted(more - table.keys.seen.keys())), config)


class _FileReader:
    """Reads one source file into the bucket and the rejects."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, table: SourceTable, number: int, label: str, config: ImportConfig
    ) -> None:
        self._connection = connection
        self._table = table
        self._number = number
        self._label = label
        self._config = config
        self._tally = FileTally()

    def read(self, bucket: BucketWriter, rejects: RejectsWriter) -> dict[str, Any]:
        """Facts of the file; raises NeedsRepairError or InputError when DuckDB refuses it."""
        rated = False
        if not self._table.empty:
            rated = self._is_rated()
            for batch in self._batches(rows_sql(self._table, self._config, rated=rated)):
                self._take(batch, bucket, rejects)
        return self._tally.facts(self._table, self._label, rated=rated)

    def _is_rated(self) -> bool:
        query = rated_sql(self._table)
        return query is not None and any(batch.num_rows for batch in self._batches(query))

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        with _reading(self._table):
            yield from self._connection.sql(query).to_arrow_reader(BATCH_ROWS)

    def _take(self, batch: pa.RecordBatch, bucket: BucketWriter, rejects: RejectsWriter) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        ids, checks, blank = digests_of(batch.column("digest"), batch.column("caption"))
        reason, value = batch.column("reason"), batch.column("value")
        if blank.any():
            # Only known after cleaning; like any other empty caption it comes before every reason but a broken text.
            reason = pc.if_else(pa.array(blank), "empty", reason)
            value = pc.if_else(pa.array(blank), batch.column("caption"), value)
        kept = pc.is_null(reason)
        numbers = np.full(batch.num_rows, self._number, np.int32)
        url = self._without_userinfo(batch.column("url"))
        columns = {"caption_id": pa.array(ids), "check": pa.array(checks), "file": pa.array(numbers), "url": url}
        arrays = [columns[name] if name in columns else batch.column(name) for name in bucket_schema().names]
        bucket.add(pa.RecordBatch.from_arrays(arrays, schema=bucket_schema()), np.asarray(kept))
        self._reject(batch.column("row"), reason, self._without_userinfo(value), pc.invert(kept), rejects)
        self._tally.read += batch.num_rows
        counts = np.bincount(batch.column("impossible").to_numpy(), minlength=1 << len(CHECKED)).tolist()
        self._tally.impossible = [old + new for old, new in zip(self._tally.impossible, counts, strict=True)]

    def _without_userinfo(self, urls: pa.Array) -> pa.Array:
        """URLs without user names and passwords: a picture is fetched without them, so that no download is lost."""
        import pyarrow.compute as pc

        # Few hold a @, which takes a tenth of the time to see.
        suspects = urls.filter(pc.match_substring(urls, "@"))
        number = pc.sum(pc.match_substring_regex(suspects, URL_USERINFO)).as_py() or 0
        self._tally.credentials += number
        return pc.replace_substring_regex(urls, URL_USERINFO, r"\1") if number else urls

    def _reject(
        self, row: pa.Array, reason: pa.Array, value: pa.Array, rejected: pa.Array, rejects: RejectsWriter
    ) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = pa.Table.from_arrays([row, reason, value], names=["row", "reason", "value"]).filter(rejected)
        if not table.num_rows:
            return
        for count in pc.value_counts(table["reason"]).to_pylist():
            self._tally.rejected[count["values"]] += count["counts"]
        source = pa.array([self._label] * table.num_rows)
        rejects.add(table.add_column(0, "source", source).cast(schema("import_rejects")))


@contextmanager
def _reading(table: SourceTable) -> Iterator[None]:
    """Turn what DuckDB raises while it reads `table` into NeedsRepairError, InputError or what memory it lacks."""
    import duckdb
    import pyarrow as pa

    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # What stands below the first line is the file's own text.
        said = str(error).partition("\n")[0]
        if said.startswith("Out of Memory"):
            hint = "Raise --memory-gib, or use fewer --workers."
            raise ResourceError(f"{table.name}: DuckDB ran out of memory: {said}", hint=hint) from error
        # A full disk, or no memory, is left as it is for `writing`, which makes an error of ours of it.
        plain = OSError(getattr(error, "errno", None), said)
        if shortage(error) is not None or write_problem(plain, table.path) is not None:
            raise
        raise reading_error(table, error) from error
