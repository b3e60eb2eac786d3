"""Shards of captions to shards of embeddings, on one device that never waits.

Captions are read and tokenised ahead, the encoder always has its next batches, and what is finished is written behind
by a thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import InputError, writing
from cdkit.core.shards import finished_facts, open_shard, part_name
from cdkit.core.storage import Folder
from cdkit.core.threads import thread_count
from cdkit.encoders.batches import batching_of, windows
from cdkit.index.embedding_files import embedding_shard, join_shards
from cdkit.index.shard_progress import ShardCounter
from cdkit.index.token_feed import IMPORT_AGAIN, TokenFeed, pieces, tokeniser_count

if TYPE_CHECKING:
    import numpy as np

    from cdkit.encoders.text_tower import TowerTextEncoder
    from cdkit.encoders.tokenizing import Tokens

UNFINISHED = "unfinished"
# Finished windows that wait while another is written; each may be as large as a shard of embeddings.
WAITING_WRITES = 1


@dataclass(frozen=True)
class ShardJob:
    """One shard of captions to embed, and all that a worker anywhere needs for it.

    processes: whether captions may be tokenised in processes of their own.
    """

    captions: Path
    target: Path
    encoder: str
    precision: str
    device: str
    fingerprint: str
    processes: bool = False

    @property
    def windows(self) -> Path:
        """Where finished windows wait for the others."""
        return self.target.parent / UNFINISHED / self.target.stem


@dataclass
class Window:
    """Captions of a shard that are sorted by length together: rows start to stop, in a file of their own or `whole`.

    ends_shard: nothing of the shard is left to embed after it; ids and facts are known once it is tokenised.
    """

    job: ShardJob
    number: int
    start: int
    stop: int
    whole: bool
    ends_shard: bool = False
    ids: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.job.target if self.whole else self.job.windows / part_name(self.number)

    def finished(self) -> dict[str, Any] | None:
        """What its file says when it is there."""
        return finished_facts(self.path, self.mark)

    @property
    def mark(self) -> str:
        return self.job.fingerprint if self.whole else f"{self.job.fingerprint}-{self.start}-{self.stop}"


@lru_cache(maxsize=1)
def worker_encoder(spec: str, device: str, precision: str) -> TowerTextEncoder:
    """The encoder of this process: loaded for the first shard, kept for the others."""
    from cdkit.encoders import load_text_encoder

    return load_text_encoder(spec, device=device, precision=precision)


def embed_group(jobs: Sequence[ShardJob]) -> list[tuple[ShardJob, dict[str, Any]]]:
    """Embed some shards; each with its facts. A worker's whole task."""
    return list(embed_shards(jobs, thread_count()))


def embed_shards(jobs: Sequence[ShardJob], threads: int) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    """Embed shards of one encoder and write each atomically; yields its facts when it is there."""
    if not jobs:
        return
    encoder = worker_encoder(jobs[0].encoder, jobs[0].device, jobs[0].precision)
    todo: list[Window] = []
    for job in jobs:
        left = _unfinished(job)
        todo += left
        if not left:
            yield job, finished_facts(job.target, job.fingerprint) or _join(job)
    jobs[0].target.parent.mkdir(parents=True, exist_ok=True)
    rows = sum(window.stop - window.start for window in todo)
    processes = tokeniser_count(rows, threads, on_gpu=encoder.device.type != "cpu") if jobs[0].processes else 0
    ahead = len(pieces(jobs[0].captions, 0, encoder.batching.window))
    writes: deque[tuple[Window, Future[dict[str, Any]]]] = deque()
    with TokenFeed(encoder.tokenizer, processes, ahead=ahead) as feed, ThreadPoolExecutor(1, "write") as writer:
        for window, vectors in _embedded(todo, encoder, feed):
            writes.append((window, writer.submit(_write, window, vectors, encoder)))
            while len(writes) > 1 + WAITING_WRITES or (writes and writes[0][1].done()):
                yield from _written(*writes.popleft())
        while writes:
            yield from _written(*writes.popleft())


def _written(window: Window, write: Future[dict[str, Any]]) -> Iterator[tuple[ShardJob, dict[str, Any]]]:
    facts = write.result()
    if window.ends_shard:
        yield window.job, facts


def _windows(job: ShardJob) -> list[Window]:
    ranges = windows(shard_rows(job.captions), batching_of(job.device).window)
    return [Window(job, number, *edges, whole=len(ranges) == 1) for number, edges in enumerate(ranges)]


def _unfinished(job: ShardJob) -> list[Window]:
    """What is left to embed of a shard."""
    if finished_facts(job.target, job.fingerprint) is not None:
        return []
    left = [window for window in _windows(job) if window.finished() is None]
    if left:
        left[-1].ends_shard = True
    return left


def _embedded(
    todo: Sequence[Window], encoder: TowerTextEncoder, feed: TokenFeed
) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with its embeddings, float16; raises InputError that names the shard."""
    embedded = encoder.encode_windows(_tokens(todo, encoder, feed), half=True, advance=_advance(todo))
    for window in todo:
        try:
            vectors = next(embedded)
        except InputError as error:
            # What is read ahead may be of a later shard, which the error names.
            if str(window.job.captions.parent) in error.message:
                raise
            raise InputError(f"{window.job.captions}: {error.message}", hint=error.hint) from error
        yield window, vectors


def _tokens(todo: Sequence[Window], encoder: TowerTextEncoder, feed: TokenFeed) -> Iterator[Tokens]:
    """The tokens of each window; fills in its ids and facts."""
    import numpy as np

    from cdkit.encoders.tokenizing import joined

    cut = [pieces(window.job.captions, window.start, window.stop) for window in todo]
    tokenised = feed.tokenised(piece for asked in cut for piece in asked)
    for window, asked in zip(todo, cut, strict=True):
        captions = [next(tokenised) for _ in asked]
        tokens = joined([part.tokens for part in captions])
        window.ids = np.concatenate([np.empty(0, np.int64), *(part.ids for part in captions)])
        window.facts = {
            "n": len(window.ids),
            "truncated": int((tokens.full_lengths > encoder.context_length).sum()),
            "tokens": int(tokens.full_lengths.sum()),
            "precision_error": encoder.precision_error,
        }
        yield tokens


def _advance(todo: Sequence[Window]) -> Callable[[int], None]:
    """Counts what the encoder has done, which it does in order, to the shards it is of."""
    counters = {window.job: ShardCounter(window.job.target) for window in todo}
    left = deque((counters[window.job], window.stop - window.start) for window in todo if window.stop > window.start)

    def advance(rows: int) -> None:
        counter, remaining = left.popleft()
        counter.advance(rows)
        if remaining > rows:
            left.appendleft((counter, remaining - rows))

    return advance


def _write(window: Window, vectors: np.ndarray, encoder: TowerTextEncoder) -> dict[str, Any]:
    """Write a window, and its shard when it was the last of it; the facts of what was written."""
    assert window.ids is not None
    facts = dict(window.facts)
    if encoder.batch_tokens < encoder.batching.tokens:
        facts["batch_tokens"] = encoder.batch_tokens
    with writing(window.job.target.parent):
        window.path.parent.mkdir(parents=True, exist_ok=True)
        with embedding_shard(window.path, encoder.dimension, fingerprint=window.mark, facts=facts) as writer:
            writer.write(window.ids, vectors)
    window.ids = None
    return _join(window.job) if window.ends_shard and not window.whole else facts


def _join(job: ShardJob) -> dict[str, Any]:
    """Make a shard of its windows, all of which are there; its facts."""
    finished = _windows(job)
    parts_facts = [window.finished() or {} for window in finished]
    facts: dict[str, Any] = {key: sum(part[key] for part in parts_facts) for key in ("n", "truncated", "tokens")}
    facts["precision_error"] = max(part["precision_error"] for part in parts_facts)
    reduced = [part["batch_tokens"] for part in parts_facts if "batch_tokens" in part]
    if reduced:
        facts["batch_tokens"] = min(reduced)
    with writing(job.target.parent):
        join_shards([window.path for window in finished], job.target, fingerprint=job.fingerprint, facts=facts)
        Folder(job.windows.parent).remove([job.windows.name])
    return facts


def finished_rows(job: ShardJob) -> int:
    """Captions of an unfinished shard that a killed run has embedded."""
    return sum(window.stop - window.start for window in _windows(job) if window.finished() is not None)


def shard_rows(path: Path) -> int:
    """Captions of a shard; raises InputError when it is damaged."""
    with open_shard(path, "captions", hint=IMPORT_AGAIN) as file:
        return int(file.metadata.num_rows)
