"""The quickstart in small, run in processes that can be killed, and what must come out the same whatever happens."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME
from cdkit.embedded.pool import write_pool
from cdkit.pipeline import spec

ROWS = 1500
SETTINGS: Mapping[str, Any] = {
    **{"count": 6, "steps": 4, "seeds": 1},
    **{"index.keep_embeddings": "true", "index.threads": 1, "index.workers": 1},
    **{
        f"{word}-tuned.{key}": value
        for word in ("star", "heart")
        for key, value in (("batch_size", 2), ("checkpoint_every", 1))
    },
    **{
        f"{step}.steps": 2
        for step in ("star-before", "heart-before", "star-after", "heart-after", "star-merged", "heart-merged", "both")
    },
}
# What the design promises to be the same bytes; scores and reports hold times.
SAME = (
    "index/captions/*.parquet",
    "index/image_rows/*.parquet",
    "index/embeddings/*.parquet",
    "index/caption.index",
    "*-set/images/*.parquet",
    "picks/picks.json",
    "*/delta.safetensors",
    "*/images/*.png",
)
# Loaded once: what a run would otherwise spend most of its time on.
PRELOADED = ["torch", "diffusers", "transformers", "faiss", "pyarrow.parquet", "cdkit.cli.app", "cdkit.training.stage"]
PATIENCE = 240.0


@dataclass
class Launched:
    """A run under way in a process of its own, with all it prints in a file."""

    process: BaseProcess
    log: Path
    began: float = field(default_factory=time.time)

    def wait(self) -> int:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"still running:\n{self.words()}"
        return self.process.exitcode

    def kill(self) -> bool:
        """SIGKILL; whether the run was still going on."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def words(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


@dataclass
class Tour:
    """The pipeline over a small pool, and how its runs have gone."""

    folder: Path
    faults: int = 0
    completed: int = 0
    lost: int = 0
    logs: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> list[str]:
        """The pipeline's steps in the order they run."""
        pipeline = spec.load(spec.find("quickstart"), {"captions": str(self.pool)}, self.folder)
        return [step.name for step in pipeline.steps]

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    def make_pool(self) -> None:
        write_pool(self.pool, rows=ROWS)

    def launch(self, out: Path, *further: str) -> Launched:
        """Start a run into `out`."""
        chosen = {"captions": self.pool, **SETTINGS}
        settings = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
        return self.start(["run", "quickstart", *settings, "--out", str(out), *further])

    def start(self, arguments: list[str]) -> Launched:
        self.logs += 1
        log = self.folder / f"run-{self.logs:03d}.log"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_run, args=(arguments, str(log)))
        process.start()
        return Launched(process, log)

    def complete(self, out: Path) -> None:
        """Run to the end: it must, and show no traceback."""
        running = self.launch(out)
        code = running.wait()
        assert code == 0, running.words()
        assert "Traceback" not in running.words()
        self.completed += 1

    def time_steps(self, out: Path) -> None:
        """Remember how long each step of a finished run took."""
        for step in self.steps:
            manifest = json.loads((out / step / MANIFEST_NAME).read_text(encoding="utf-8"))
            self.seconds[step] = float(manifest["run"]["seconds"])

    def report(self) -> str:
        return json.dumps({"faults_injected": self.faults, "runs_completed": self.completed, "data_lost": self.lost})


def _run(arguments: list[str], log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    import torch

    from cdkit.cli.app import execute_command

    torch.set_num_threads(1)
    os._exit(execute_command(arguments))


def reached(running: Launched, out: Path, steps: Sequence[str]) -> bool:
    """Wait until this run has begun one of the steps; False when it ended before."""
    marks = [out / step / STARTED_NAME for step in steps]
    while running.process.is_alive():
        for mark in marks:
            with suppress(OSError):
                # A run that was killed earlier left its mark, too.
                if mark.stat().st_mtime >= running.began:
                    return True
        time.sleep(0.002)
    return False


def finished(out: Path) -> dict[str, tuple[int, bytes]]:
    """Every finished step's manifest, with the time it was written: both change when a step is made again."""
    found = {}
    for path in out.glob(f"*/{MANIFEST_NAME}"):
        # A manifest beside a start mark belongs to a step that is being made again on purpose.
        if not (path.parent / STARTED_NAME).exists():
            found[path.parent.name] = (path.stat().st_mtime_ns, path.read_bytes())
    return found


def digests(out: Path) -> dict[str, str]:
    """The content of everything that is promised to be the same."""
    paths = sorted(path for pattern in SAME for path in out.glob(pattern))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
