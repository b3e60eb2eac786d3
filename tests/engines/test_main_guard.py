"""Scripts that start stages with workers and have no main guard are told what to do."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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
