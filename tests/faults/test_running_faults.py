"""What goes wrong while a command runs: a full disk, one that fails, too many open files, signals, clocks, workers.

It ends with words and an exit code, nothing that was finished is lost, and the same command completes afterwards.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cdkit.core.errors import CdkitError
from tests.faults.counts import count
from tests.faults.matrix import Matrix
from tests.faults.recorder import Effect, watching
from tests.faults.scenarios import Material, stage

# What needs space, and what needs a free descriptor.
GROWING = ("open", "os.mkdir", "os.rename", "fsync")
KINDS = {
    errno.ENOSPC: GROWING,
    errno.EIO: ("open", "fsync", "os.rename"),
    errno.EMFILE: ("open",),
    # As a disk that fails is made by the system.
    errno.EROFS: ("open", "os.mkdir", "os.rename", "os.remove"),
}
CALLED = {
    errno.ENOSPC: "a full disk",
    errno.EIO: "a failing disk",
    errno.EMFILE: "no free file number",
    errno.EROFS: "a disk that became read-only",
}
QUICK = (
    *("import", "token-counts", "sample", "remove, exact", "delta-compress", "export, webui-diff"),
    "review decisions",
)


class Fault:
    """Raises an error of the system at the n-th effect of certain kinds, and at all after it: a disk stays full."""

    def __init__(self, code: int, place: int) -> None:
        self.code, self.place, self.raised = code, place, 0

    def __call__(self, effect: Effect) -> None:
        if effect.kind in KINDS[self.code]:
            self.place -= 1
            if self.place < 0:
                self.raised += 1
                raise OSError(self.code, os.strerror(self.code), effect.paths[-1])


def inject(matrix: Matrix, name: str, code: int, place: int) -> str:
    """Run with a fault, then without: what became of the first is returned, and the second ends as it must."""
    scenario, root = matrix.scenarios[name], matrix.folder()
    root.mkdir()
    scenario.prepare(root / "out")
    fault, outcome = Fault(code, place), "survived"
    try:
        with watching(root, fault):
            scenario.run(root / "out")
    except CdkitError as error:
        assert error.exit_code in (2, 3, 7), error
        assert error.hint, error
        outcome = "refused"
    if not fault.raised:
        return "over"
    scenario.go_on(root / "out")
    assert scenario.result(root / "out") == matrix.whole(name), (name, errno.errorcode[code], place)
    return outcome


def campaign(matrix: Matrix, names: list[str], sample: int | None) -> Counter[str]:
    """Faults at every effect of each command, or at some."""
    total: Counter[str] = Counter()
    for code, kinds in KINDS.items():
        outcomes: Counter[str] = Counter()
        for name in names:
            places = range(sum(effect.kind in kinds for effect in matrix.effects(name)))
            chosen = places if sample is None else random.Random(name).sample(places, min(sample, len(places)))
            outcomes += Counter(inject(matrix, name, code, place) for place in chosen)
        # Places that a run did not come to.
        del outcomes["over"]
        count(f"{CALLED[code]} at effects of {len(names)} commands", outcomes)
        total += outcomes
    return total


def test_some_faults_of_disks_and_files(matrix: Matrix) -> None:
    outcomes = campaign(matrix, list(QUICK), 1)
    assert outcomes.total() > 20
    assert outcomes["refused"] > outcomes.total() / 2


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_all_faults_of_disks_and_files(matrix: Matrix) -> None:
    assert campaign(matrix, list(matrix.scenarios), None).total() > 1000


TRAINING = (
    "train",
    "--concept",
    "star=embedded:striped-star",
    "--batch-size",
    "1",
    "--device",
    "cpu",
    "--threads",
    "1",
)


def start(*arguments: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cdkit", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload,no-any-return]


def test_a_polite_kill_ends_like_ctrl_c_with_a_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    # No checkpoint is due before the end.
    arguments = (*TRAINING, "--steps", "2000", "--checkpoint-every", "1990", "--out", str(out))
    running = start(*arguments)
    metrics = out / "metrics.csv"
    _wait(lambda: metrics.exists() and metrics.read_text().count("\n") > 5, running)
    running.send_signal(signal.SIGTERM)
    words, _ = running.communicate(timeout=60)
    assert running.returncode in (130, 143), words
    assert "Traceback" not in words
    assert "Run the same command to continue" in words
    [checkpoint] = (out / "checkpoints").glob("step-*")
    assert int(checkpoint.name.partition("-")[2]) >= 5
    assert not list(out.rglob(".tmp-*"))
    count("SIGTERM in a training", {"survived": 1})


def _wait(condition: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Interrupted in the middle of a step, where no checkpoint was due."""

    class Interrupting:
        """Stands for ctrl-C while the gradients of one step are added up."""

        def __init__(self, at: int) -> None:
            self.at, self.seen = at, 0

        def __call__(self, effect: Effect) -> None:
            if effect.kind == "open" and effect.paths[0].endswith("metrics.csv"):
                self.seen += 1
                if self.seen == self.at:
                    signal.raise_signal(signal.SIGINT)

    made = stage("train", **Material(tmp_path).trained("star", "striped-star", steps=4, checkpoint_every=3))
    made.run(tmp_path / "alone" / "out")
    root = tmp_path / "interrupted"
    root.mkdir()
    # Whatever another test of this process made of Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), watching(root, Interrupting(3)):
            made.run(root / "out")
    finally:
        signal.signal(signal.SIGINT, before)
    made.run(root / "out")
    assert made.result(root / "out") == made.result(tmp_path / "alone" / "out")
    count("ctrl-C within a step of a training", {"survived": 1})


def test_a_clock_that_goes_back(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is an hour before the last one; files are of tomorrow."""
    for name in ("import", "sample"):
        scenario, root = matrix.scenarios[name], matrix.folder()
        root.mkdir()
        with monkeypatch.context() as patched:
            hours = iter(range(10**9))
            now = time.time()
            patched.setattr(time, "time", lambda now=now, hours=hours: now - 3600.0 * next(hours))
            scenario.run(root / "out")
        for path in root.rglob("*"):
            os.utime(path, (time.time() + 86400,) * 2)
        assert scenario.result(root / "out") == matrix.whole(name)
        scenario.run(root / "out")
        assert scenario.result(root / "out") == matrix.whole(name)
    count("clocks that go back", {"survived": 2})


def test_few_open_files(tmp_path: Path) -> None:
    """A limit of the shell, low enough to be met: the message names it."""
    captions = tmp_path / "captions.csv"
    captions.write_text("caption\n" + "".join(f"a star number {number}\n" for number in range(50)))
    outcomes = []
    for limit in (12, 24, 64, 256):
        running = start(
            *("index", "import", "--captions", str(captions), "--out", str(tmp_path / "out"), "--workers", "1"),
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
        words, _ = running.communicate(timeout=120)
        assert running.returncode in (0, 1, 2, 3, 7), words
        # With a dozen, Python itself cannot start.
        if limit >= 64:
            assert "Traceback" not in words, words
        outcomes.append("refused" if running.returncode else "survived")
    assert running.returncode == 0, words
    count("limits on open files, 12 to 256", Counter(outcomes))


def test_a_worker_that_is_killed(tmp_path: Path) -> None:
    """The kernel kills one of an import's workers, as when memory is short: its work is done all the same."""
    # Files large enough to be handed out one by one.
    words = " ".join(f"star{number}" for number in range(500))
    for file in range(4):
        rows = "".join(f"{words} {file} {row}\n" for row in range(1200))
        (tmp_path / f"captions-{file}.csv").write_text(f"caption\n{rows}")
    pattern = str(tmp_path / "captions-*.csv")
    running = start("index", "import", "--captions", pattern, "--workers", "2", "--out", str(tmp_path / "out"))
    killed = False
    while running.poll() is None and not killed:
        killed = _kill_worker(running.pid)
        time.sleep(0.01)
    said, _ = running.communicate(timeout=200)
    assert killed, f"no worker was seen: {said}"
    assert running.returncode == 0, said
    alone = stage("import", captions=[pattern], workers=1, threads=1)
    alone.run(tmp_path / "alone")
    assert alone.result(tmp_path / "out") == alone.result(tmp_path / "alone")
    count("a worker killed by the system", {"survived": 1})


def _kill_worker(parent: int) -> bool:
    """Kill a worker that has begun to work."""
    for child in psutil.Process(parent).children():
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()) and child.cpu_times().user > 0.3:
                child.send_signal(signal.SIGKILL)
                return True
    return False
