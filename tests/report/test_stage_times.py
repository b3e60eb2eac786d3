"""Times, peaks and versions on the page are those of the manifests, and those what another clock says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from cdkit.core.manifest import Manifest, read_manifest, run_record
from cdkit.core.storage import write_json
from cdkit.report.run_folder import read_run
from cdkit.report.sections.stages import stages_section
from tests.cli.running import ran
from tests.support.pretend_run import write_manifest


def _step(folder: Path, ended: str, **run: Any) -> None:
    write_manifest(folder, "tokens")
    record = {**run_record(datetime.now(UTC), 2.5, 1_000_000_000), "ended": ended, **run}
    Manifest("tokens", 1, "a" * 64, {"seeds": 4, "first_seed": 2}, {}, run=record).write(folder)


def test_what_was_made_before_the_last_run_says_so(tmp_path: Path) -> None:
    _step(tmp_path / "old", "2026-01-01T10:00:00+00:00")
    _step(tmp_path / "new", "2026-01-02T10:00:05+00:00", seconds=4.0, versions={"torch": "9.9"})
    _step(tmp_path / "rest", "2026-01-02T10:00:09+00:00", seconds=1.0, continued=True)
    stages = {name: {"run": "tokens"} for name in ("old", "new", "rest", "gone")}
    write_json(tmp_path / "run.json", {"pipeline": "p", "started": "2026-01-02T10:00:00+00:00", "stages": stages})
    section = stages_section(read_run(tmp_path))
    old, new, rest, gone = section.rows
    assert (old.cached, new.cached, rest.cached, gone.cached) == (True, False, False, False)
    assert (section.seconds, section.seconds_now) == (7.5, 5.0)
    assert (old.seconds, old.peak_bytes, old.made, old.seeds) == (
        2.5,
        1_000_000_000,
        "2026-01-01T10:00:00+00:00",
        "2 to 5",
    )
    assert "interrupted" in rest.note
    assert not new.note
    assert (gone.state, gone.seconds, gone.made) == ("missing", None, "")
    # Versions stand once, with the stages they made where there are several.
    assert [versions.stages for versions in section.versions] == ["old, rest", "new"]
    assert "torch 9.9" in section.versions[1].text


def test_a_cached_run_and_a_continued_stage_are_recorded(tmp_path: Path) -> None:
    pipeline = tmp_path / "p.yaml"
    pipeline.write_text(
        "name: p\nstages:\n  drawn: {run: sample, prompts: [a star], seeds: 1, steps: 1, device: cpu}\n"
    )
    assert ran(["run", pipeline, "--out", tmp_path / "run"]).code == 0
    made = read_manifest(tmp_path / "run" / "drawn")
    assert made is not None
    assert not stages_section(read_run(tmp_path / "run")).rows[0].cached
    time.sleep(1.1)
    assert ran(["run", pipeline, "--out", tmp_path / "run"]).code == 0
    (row,) = stages_section(read_run(tmp_path / "run")).rows
    assert row.cached
    assert (row.seconds, row.made) == (made.run["seconds"], made.run["ended"])
    # Killed after its picture was written: the rest has its own time, and says that it is the rest.
    drawn = tmp_path / "run" / "drawn"
    os.replace(drawn / "manifest.json", drawn / "started.json")
    assert ran(["run", pipeline, "--out", tmp_path / "run"]).code == 0
    (row,) = stages_section(read_run(tmp_path / "run")).rows
    assert not row.cached
    assert row.note


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_times_and_peaks_are_what_another_clock_says(tmp_path: Path) -> None:
    """A sampling in a process of its own, watched from outside."""
    words = ["sample", "--prompt", "a photo of a star", "--seeds", "2", "--steps", "30", "--device", "cpu"]
    out = tmp_path / "drawn"
    process = subprocess.Popen(
        [sys.executable, "-m", "cdkit", *words, "--out", str(out)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    seen: list[tuple[float, int]] = []
    while process.poll() is None:
        # While the stage is at work, its folder says so.
        if (out / "started.json").exists() and not (out / "manifest.json").exists():
            seen.append((time.monotonic(), psutil.Process(process.pid).memory_info().rss))
        time.sleep(0.02)
    assert process.returncode == 0
    (row,) = stages_section(read_run(tmp_path)).rows
    assert row.seconds == pytest.approx(seen[-1][0] - seen[0][0], rel=0.05, abs=0.5)
    assert row.peak_bytes == pytest.approx(max(memory for _, memory in seen), rel=0.03)
