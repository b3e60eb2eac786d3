"""Progress from inside a shard, wherever it is worked on: small files that workers write and one thread reads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdkit.core.protocols import Task
from cdkit.core.storage import TEMPORARY_PREFIX

WRITE_SECONDS = 0.5
READ_SECONDS = 0.5


class ShardCounter:
    """A worker's side: counts what it has done of one shard in a file beside the shard."""

    def __init__(self, shard: Path) -> None:
        self.path = counter_path(shard)
        self.done = 0
        self._written = 0.0

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self._written < WRITE_SECONDS:
            return
        self._written = now
        # Progress must never stop the work; a full disk shows where the shard is written.
        with suppress(OSError):
            self.path.write_text(f"{self.done:020d}", encoding="ascii")


class ShardWatch:
    """The main process's side: moves one progress bar by what the counters of the unfinished shards say."""

    def __init__(self, task: Task, shards: list[Path]) -> None:
        self._task = task
        self._open = set(shards)
        self._finished = 0
        self._shown = 0
        self._guard = threading.Lock()

    def finish(self, shard: Path, amount: int) -> None:
        """A shard is done; its whole amount counts from now on."""
        with self._guard:
            self._open.discard(shard)
            self._finished += amount
        counter_path(shard).unlink(missing_ok=True)
        self.show()

    def show(self) -> None:
        with self._guard:
            done = self._finished + sum(_read(counter_path(shard)) for shard in self._open)
            step, self._shown = max(0, done - self._shown), max(done, self._shown)
            if step:
                self._task.advance(step)

    def close(self) -> None:
        for shard in self._open:
            counter_path(shard).unlink(missing_ok=True)


@contextmanager
def watched_shards(task: Task, shards: list[Path]) -> Iterator[ShardWatch]:
    """Keep `task` moving while the block hands out work on `shards`."""
    watch, over = ShardWatch(task, shards), threading.Event()

    def follow() -> None:
        while not over.wait(READ_SECONDS):
            watch.show()

    thread = threading.Thread(target=follow, name="shard-progress", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
        watch.close()


def counter_path(shard: Path) -> Path:
    """Where the rows of a shard that is being written are counted."""
    return shard.parent / f"{TEMPORARY_PREFIX}count-{shard.stem}"


def _read(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there yet, or half written
        return 0
