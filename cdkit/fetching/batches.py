"""A few fetches from one host at a time."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import cdkit
from cdkit.core.errors import CdkitError
from cdkit.core.storage import write_json
from cdkit.core.system_errors import shortage, write_problem
from cdkit.fetching.failures import DEFERRED, FetchFailure
from cdkit.fetching.job import IMAGES_NAME, PROXY_VARIABLE, Job, journal_events


@dataclass
class _Host:
    """The turns of one host, and how often it has answered in any way."""

    turns: threading.Semaphore
    answers: int = 0


class HostTurns:
    """At most `limit` fetches from one host and port at a time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._hosts: dict[tuple[str, int], _Host] = {}

    @contextmanager
    def turn(self, place: tuple[str, int], patience: float) -> Iterator[None]:
        """Wait for a turn, at most `patience` seconds.

        Raises FetchFailure: deferred when the host is only busy, timeout when it answered nobody in the meantime; so a
        host that hangs takes one wave per try, not one per few URLs.
        """
        with self._lock:
            host = self._hosts.setdefault(place, _Host(threading.Semaphore(self._limit)))
        before = host.answers
        if not host.turns.acquire(timeout=patience):
            if host.answers > before:
                raise FetchFailure(DEFERRED, f"{place[0]} is busy")
            raise FetchFailure("timeout", f"{place[0]} answered nobody for {patience:g} s")
        try:
            yield
            host.answers += 1
        except FetchFailure as failure:
            host.answers += failure.kind != "timeout"
            raise
        finally:
            host.turns.release()


ENDED_NAME = "ended.json"
LOG_NAME = "program.log"
# The one shard of img2dataset's that every wave is.
SHARD_NAME = "00000"
PROGRAM = "cdkit.fetching.program"
POLL_SECONDS = 0.1
COUNT_SECONDS = 1.0
Cause = Literal["finished", "bound", "crashed"]


@dataclass(frozen=True)
class WaveEnd:
    """How a wave ended: by itself, at its bound, or by a crash of the program; seconds it took and was allowed."""

    cause: Cause
    urls: int
    seconds: float
    bound: float


def run_wave(folder: Path, job: Job, advance: Callable[[float], None] | None = None) -> WaveEnd:
    """Fetch the job's URLs into `folder`, which must be new; `advance` is called with the URLs that ended since.

    However the caller ends, the program and its workers end too. Raises OutputError when the disk is full.
    """
    job.write(folder)
    bound = wave_bound(len(job.urls), job.settings.threads, job.settings.deadline)
    clock = time.monotonic()
    with (folder / LOG_NAME).open("wb") as log:
        program = subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM],
            cwd=folder,
            env=_environment(job.settings.proxy),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    counter = _Counter(folder, advance)
    try:
        cause = _watch(program, folder, clock + bound, counter.count)
        counter.count()
    finally:
        # Before the program is reaped, so that its process group cannot be somebody else's yet.
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        if program.stdin is not None:
            program.stdin.close()
    end = WaveEnd(cause, len(job.urls), round(time.monotonic() - clock, 3), bound)
    _check(folder, end)
    shutil.rmtree(folder / IMAGES_NAME / "_tmp", ignore_errors=True)
    write_json(folder / ENDED_NAME, {"cause": end.cause, "seconds": end.seconds, "bound": end.bound})
    return end


class _Counter:
    """Tells how many URLs came to an end since it was asked last."""

    def __init__(self, folder: Path, advance: Callable[[float], None] | None) -> None:
        self._folder = folder
        self._advance = advance
        self._counted = 0

    def count(self) -> None:
        if self._advance is None:
            return
        ended = sum(event["event"] != "started" for event in journal_events(self._folder))
        self._advance(ended - self._counted)
        self._counted = ended


def _watch(program: subprocess.Popen[bytes], folder: Path, end: float, count: Callable[[], None]) -> Cause:
    next_count = time.monotonic() + COUNT_SECONDS
    stats = folder / IMAGES_NAME / f"{SHARD_NAME}_stats.json"
    while True:
        status = _exit_status(program)
        now = time.monotonic()
        if now >= next_count:
            count()
            next_count = now + COUNT_SECONDS
        # Written after the last image; what follows is img2dataset's own accounting, seconds of it.
        if stats.exists():
            return "finished"
        if status is not None:
            return "finished" if status == 0 else "crashed"
        if now >= end:
            return "bound"
        time.sleep(min(POLL_SECONDS, end - now))


def _exit_status(program: subprocess.Popen[bytes]) -> int | None:
    """0 when the program ended well, another number when it did not, None while it runs."""
    if not hasattr(os, "waitid"):  # macOS
        return program.poll()
    # WNOWAIT leaves the program a zombie, which keeps its process group's number taken.
    state = os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if state is None:
        return None
    return int(state.si_status) if state.si_code == os.CLD_EXITED else -1


def _environment(proxy: str | None) -> dict[str, str]:
    """The program's environment: no proxy but the one chosen, no calls home, and this very cdkit."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    root = str(Path(cdkit.__file__).parents[1])
    search = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return (
        kept
        | ({PROXY_VARIABLE: proxy} if proxy else {})
        | {
            "PYTHONPATH": os.pathsep.join(search),
            "NO_ALBUMENTATIONS_UPDATE": "1",
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
            # Address space is bounded there, and these would reserve gigabytes of it in advance.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "2",
        }
    )


def _check(folder: Path, end: WaveEnd) -> None:
    """A full disk or a program that never got to work is no fault of the URLs: nothing is settled by it."""
    log = (folder / LOG_NAME).read_bytes()[-20_000:].decode("utf-8", "replace")
    said = [line for line in log.splitlines() if line.strip()]
    for line in said:
        full = write_problem(OSError(line), folder) if "[Errno" in line else None
        if full is not None:
            raise full
    if end.cause == "finished" or any(journal_events(folder)):
        return
    for line in said:
        lacking = shortage(RuntimeError(line))
        if lacking is not None:
            raise lacking
    if end.cause == "crashed":
        last = said[-1] if said else "it said nothing"
        raise CdkitError(f"img2dataset could not run: {last}", hint=f"All it said is in {folder / LOG_NAME}.")


SMALLEST_WAVE = 16
LARGEST_WAVE = 2000
# Weight of the survival expected against the one measured, in URLs.
PRIOR_WEIGHT = 8
STARTING_SECONDS = 30.0
Item = TypeVar("Item")


def wave_size(missing: int, *, tried: int, accepted: int, survival: float) -> int:
    """URLs to try for `missing` more images: the first wave by the survival expected, later ones by that measured.

    Later waves add two standard deviations of a binomial draw, because another wave costs more than a few URLs.
    """
    if missing <= 0:
        return 0
    if tried == 0:
        wanted = math.ceil(missing / survival)
    else:
        rate = (accepted + PRIOR_WEIGHT * survival) / (tried + PRIOR_WEIGHT)
        wanted = math.ceil(missing / rate + 2 * math.sqrt(missing * (1 - rate)) / rate)
    return min(LARGEST_WAVE, max(SMALLEST_WAVE, wanted))


def wave_bound(count: int, threads: int, deadline: float) -> float:
    """The longest a wave may take, in seconds: every thread busy to the deadline every time, and the start."""
    return math.ceil(count / threads) * deadline + STARTING_SECONDS


def spread_hosts(items: Sequence[Item], hosts: Sequence[str]) -> list[Item]:
    """The items in an order that takes turns between hosts, so that threads do not queue for one of them."""
    queues: dict[str, deque[Item]] = {}
    for item, host in zip(items, hosts, strict=True):
        queues.setdefault(host, deque()).append(item)
    turns, ordered = deque(queues.values()), []
    while turns:
        queue = turns.popleft()
        ordered.append(queue.popleft())
        if queue:
            turns.append(queue)
    return ordered
