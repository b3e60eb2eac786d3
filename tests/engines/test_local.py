from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.engines import create_engine
from cdkit.engines.local import LocalEngine, visible_gpus


def _square(number: int) -> int:
    if number == 3:
        raise InputError("three", hint="not three")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_one_outcome_per_item_in_order_even_when_a_worker_is_killed() -> None:
    outcomes = list(LocalEngine(2).map(_square, [1, 2, 3, 4, 5, 6, 7], label="squares"))
    assert [outcome.item for outcome in outcomes] == [1, 2, 3, 4, 5, 6, 7]
    assert [outcome.value for outcome in outcomes] == [1, 4, None, 16, None, 36, 49]
    assert isinstance(outcomes[2].error, InputError)
    assert isinstance(outcomes[4].error, CdkitError)
    assert "died" in str(outcomes[4].error)
    with pytest.raises(InputError, match="three"):
        outcomes[2].unwrap()


def test_one_worker_gives_the_same_outcomes() -> None:
    values = [outcome.value for outcome in LocalEngine(1).map(_square, [1, 2, 3, 4], label="squares")]
    assert values == [1, 4, None, 16]


def test_an_unknown_engine_is_an_error_not_a_no_op() -> None:
    with pytest.raises(ConfigError, match="dask"):
        create_engine("dask", 1)


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _seen_gpus(_: int) -> str | None:
    time.sleep(0.5)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


class _TwoGpus(LocalEngine):
    gpus = 2


def test_every_worker_on_gpus_has_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5e")
    seen = [outcome.unwrap() for outcome in _TwoGpus(8).map(_seen_gpus, [1, 2, 3, 4], label="gpus", gpu=True)]
    assert set(seen) == {"3", "GPU-5e"}
    # One worker keeps to this process, which may use them all.
    alone = [outcome.unwrap() for outcome in _TwoGpus(1).map(_seen_gpus, [1, 2], label="gpus", gpu=True)]
    assert alone == ["3,GPU-5e"] * 2


def test_gpus_are_named_as_cuda_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert visible_gpus(2) == ["2", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(3) == ["0", "1", "2"]
    assert visible_gpus(0) == []


def _run_for_ever(marker: Path) -> None:
    for _ in LocalEngine(2).map(_sleep, [0.01, 600.0, 600.0], label="sleep"):
        marker.touch()


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    imports = "from pathlib import Path; from tests.engines.test_local import _run_for_ever"
    code = f"if __name__ == '__main__':\n    {imports}; _run_for_ever(Path({str(marker)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not marker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


IMPORT = """
from pathlib import Path
from cdkit.captions.config import ImportConfig
from cdkit.execute import execute

def work(workers):
    config = ImportConfig(captions=["pool"], workers=workers)
    print("ran", execute("import", config, Path("out")).state)
"""
GUARD = 'if __name__ == "__main__":'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    for number in range(2):
        # Large enough to be read by two workers.
        rows = "".join(f"a red star number {number} {row}\n" for row in range(400_000))
        (tmp_path / "pool" / f"{number}.csv").write_text("caption\n" + rows)
    return tmp_path


def _run(folder: Path, ending: str, *, command: tuple[str, ...] = ("script.py",)) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(IMPORT + textwrap.dedent(ending))
    return subprocess.run(
        [sys.executable, *command], check=False, cwd=folder, capture_output=True, text=True, timeout=200
    )


@pytest.mark.parametrize(
    "ending",
    [
        "work(2)",
        "for attempt in [1]:\n    work(2)",
        "try:\n    work(2)\nfinally:\n    pass",
        "import threading\nthread = threading.Thread(target=work, args=(2,))\nthread.start()\nthread.join()",
    ],
)
def test_without_a_guard_the_script_is_told_at_once(folder: Path, ending: str) -> None:
    ended = _run(folder, ending)
    assert "ran" not in ended.stdout
    assert "ConfigError" in ended.stderr
    assert "would run the script from its start" in ended.stderr
    assert "Another run" not in ended.stderr
    assert ended.stderr.count("Traceback") == 1


def test_the_hint_names_the_guard(folder: Path) -> None:
    ended = _run(
        folder,
        "from cdkit.core.errors import CdkitError\ntry:\n    work(2)\nexcept CdkitError as e:\n    print(e.hint)",
    )
    assert GUARD in ended.stdout


@pytest.mark.parametrize(
    "ending",
    [
        f"{GUARD}\n    work(2)",
        f"def main():\n    work(2)\n{GUARD}\n    main()",
        "import multiprocessing\nif multiprocessing.current_process().name == 'MainProcess':\n    work(2)",
        "work(1)",
    ],
)
def test_with_a_guard_or_one_worker_it_runs(folder: Path, ending: str) -> None:
    ended = _run(folder, ending)
    assert ended.stdout == "ran done\n", ended.stderr


@pytest.mark.parametrize("command", [("-c", "import script; script.work(2)"), ("-m", "script")])
def test_other_ways_to_start(folder: Path, command: tuple[str, ...]) -> None:
    ended = _run(folder, "if __name__ == '__main__': work(2)", command=command)
    assert ended.stdout == "ran done\n", ended.stderr


def test_a_worker_that_gets_there_all_the_same_is_told_too(folder: Path) -> None:
    """A condition that holds in workers as well looks like a guard, and is none."""
    ended = _run(folder, "if True:\n    work(2)")
    assert ended.returncode != 0
    assert "A worker process has run the main script from its start." in ended.stderr
    assert "Another run" not in ended.stderr
