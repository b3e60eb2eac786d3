"""Running the guarded program over one wave: started, watched, ended in time with everything it spawned."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cdkit
from cdkit.errors import CdkitError
from cdkit.retrieval.fetch_job import IMAGES_NAME, PROXY_VARIABLE, Job, journal_events
from cdkit.retrieval.waves import wave_bound
from cdkit.storage import write_json
from cdkit.system_errors import shortage, write_problem

ENDED_NAME = "ended.json"
LOG_NAME = "program.log"
# The one shard of img2dataset's that every wave is.
SHARD_NAME = "00000"
PROGRAM = "cdkit.retrieval.fetch_program"
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
