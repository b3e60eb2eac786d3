"""Batches of URLs: how many at once, and how the guarded program fetches them, here or on an engine's workers."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import cdkit
from cdkit.core.errors import CdkitError, shortage, write_problem
from cdkit.core.protocols import Engine
from cdkit.core.storage import atomic_path, write_json
from cdkit.fetching.job import ENDED_NAME, IMAGES_NAME, LOG_NAME, PROXY_VARIABLE, SHARD_NAME, Job, journal_events
from cdkit.fetching.urls import host_of

PROGRAM = "cdkit.fetching.program"
POLL_SECONDS = 0.1
COUNT_SECONDS = 1.0
STARTING_SECONDS = 30.0
SMALLEST_WAVE = 16
LARGEST_WAVE = 2000
# URLs from which on a wave takes so long that one more, for the last few, hardly counts.
LONG_WAVE = 200
# Weight of the survival expected against the one measured, in URLs.
PRIOR_WEIGHT = 8
Cause = Literal["finished", "bound", "crashed"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class WaveEnd:
    """How a batch ended: by itself, at its bound, or by a crash of the program; seconds it took and was allowed."""

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
    count = _counter(folder, advance)
    try:
        cause = _watch(program, folder, clock + bound, count)
        count()
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


def split_job(job: Job, shards: int) -> list[Job]:
    """The job in at most `shards` parts of about the same size; a host stays in one, so that its turns are kept."""
    hosts: dict[str, list[int]] = {}
    for key, url in enumerate(job.urls):
        hosts.setdefault(host_of(url), []).append(key)
    parts: list[list[int]] = [[] for _ in range(min(shards, len(hosts)))]
    for keys in sorted(hosts.values(), key=len, reverse=True):
        min(parts, key=len).extend(keys)
    jobs = []
    for keys in map(sorted, parts):
        hashes = {place: job.hashes[key] for place, key in enumerate(keys) if key in job.hashes}
        jobs.append(replace(job, urls=tuple(job.urls[key] for key in keys), hashes=hashes))
    return jobs


def fetch_shard(job: Job) -> tuple[dict[str, bytes], WaveEnd]:
    """Run the guarded program on local disk, wherever this is called: the files it wrote by relative path, its end."""
    with tempfile.TemporaryDirectory(prefix="cdkit-fetch-") as scratch:
        folder = Path(scratch) / "wave"
        end = run_wave(folder, job)
        # img2dataset's own notes are left behind: the journal and the images say it all.
        images = (folder / IMAGES_NAME).rglob("*.jpg")
        paths = [path for path in (*folder.iterdir(), *images) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}, end


def fetch_on_engine(engine: Engine, jobs: Sequence[Job], folders: Sequence[Path]) -> Iterator[WaveEnd]:
    """Run one shard per job on the engine's workers and put each result into its folder, whole or not at all."""
    outcomes = engine.map(fetch_shard, jobs, label="fetch")
    for outcome, folder in zip(outcomes, folders, strict=True):
        if isinstance(outcome.error, CdkitError):
            raise outcome.error
        if outcome.value is None:
            # The machine is gone, and what it fetched with it: its URLs are tried again.
            yield WaveEnd("crashed", len(outcome.item.urls), 0.0, 0.0)
            continue
        files, end = outcome.value
        with atomic_path(folder) as temporary:
            for name, content in files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield end


def wave_size(missing: int, *, tried: int, accepted: int, survival: float) -> int:
    """URLs to try for `missing` more images: the first wave by the survival expected, later ones by that measured.

    A long wave is sized by a rate one deviation above the one measured, so that a rate that was underestimated costs
    no URLs; what it leaves takes a short wave more. A short wave adds two deviations of a binomial draw, because
    another wave costs more than a few URLs.
    """
    if missing <= 0:
        return 0
    if tried == 0:
        size = missing / survival
    else:
        weight = tried + PRIOR_WEIGHT
        rate = (accepted + PRIOR_WEIGHT * survival) / weight
        size = missing / rate
        if size > LONG_WAVE:
            size = missing / (rate + math.sqrt(rate * (1 - rate) / weight))
        else:
            size += 2 * math.sqrt(missing * (1 - rate)) / rate
    return min(LARGEST_WAVE, max(SMALLEST_WAVE, math.ceil(size)))


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


def _counter(folder: Path, advance: Callable[[float], None] | None) -> Callable[[], None]:
    """Tells `advance` how many URLs came to an end since it was called last."""
    counted = 0

    def count() -> None:
        nonlocal counted
        if advance is not None:
            ended = sum(event["event"] != "started" for event in journal_events(folder))
            advance(ended - counted)
            counted = ended

    return count


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
    search = [str(Path(cdkit.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {
        "PYTHONPATH": os.pathsep.join(search),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "WANDB_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
        # Address space is bounded there, and these would reserve gigabytes of it in advance.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MALLOC_ARENA_MAX": "2",
    }
    return kept | settings | ({PROXY_VARIABLE: proxy} if proxy else {})


def _check(folder: Path, end: WaveEnd) -> None:
    """A full disk or a program that never got to work is no fault of the URLs: nothing is settled by it."""
    log = (folder / LOG_NAME).read_bytes()[-20_000:].decode("utf-8", "replace")
    lines = [line for line in log.splitlines() if line.strip()]
    for line in lines:
        full = write_problem(OSError(line), folder) if "[Errno" in line else None
        if full is not None:
            raise full
    if end.cause == "finished" or any(journal_events(folder)):
        return
    for line in lines:
        lacking = shortage(RuntimeError(line))
        if lacking is not None:
            raise lacking
    if end.cause == "crashed":
        last = lines[-1] if lines else "it said nothing"
        raise CdkitError(f"img2dataset could not run: {last}", hint=f"All it said is in {folder / LOG_NAME}.")
