"""The memory of each stage, not the largest of all that ran before it in the process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdkit.core import peak_memory
from cdkit.core.fingerprints import Input
from cdkit.core.peak_memory import PeakMemory
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset
from cdkit.core.storage import Folder
from cdkit.execute import execute
from cdkit.stages import STAGES
from tests.support.adding_stage import AddingConfig

MB = 1 << 20


def _take(megabytes: int) -> None:
    """Touch this much memory and give it back."""
    np.ones(megabytes * MB // 8).sum()


def taking(config: AddingConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """A stage that takes `plus` megabytes."""
    _take(config.plus)
    return Dataset("sums", out.path)


def test_each_stage_has_its_own_figure(adding: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "adding", replace(STAGES["adding"], function=f"{__name__}:taking"))
    peaks = {}
    for name, megabytes in (("large", 400), ("small", 1), ("middle", 150)):
        made = execute("adding", AddingConfig(plus=megabytes), tmp_path / name)
        peaks[name] = made.manifest.run["peak_process_bytes"]
    assert 220 * MB < peaks["large"] - peaks["middle"] < 280 * MB
    assert 120 * MB < peaks["middle"] - peaks["small"] < 180 * MB


CHILDREN = """
import json, subprocess, sys, time
from cdkit.core.peak_memory import PeakMemory

def child(megabytes, seconds):
    program = f"x = bytearray({megabytes} << 20); del x; print(flush=True); import time; time.sleep({seconds})"
    started = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    started.stdout.readline()
    return started

child(300, 0).wait()
with PeakMemory() as nothing:
    pass
with PeakMemory() as larger:
    child(700, 0).wait()
with PeakMemory() as smaller:
    child(500, 2.5).wait()  # less than the child before: seen only while it lives
old = child(900, 60)
with PeakMemory() as holding_nothing_any_more:
    time.sleep(1.5)
old.kill()
print(json.dumps([peak.bytes >> 20 for peak in (nothing, larger, smaller, holding_nothing_any_more)]))
"""


def test_children_count_while_they_live_and_when_they_are_gone() -> None:
    # In a process of its own: this one may be larger than all of them.
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True, check=True)
    nothing, larger, smaller, holding_nothing_any_more = json.loads(done.stdout)
    assert nothing < 300
    assert 700 < larger < 800
    assert 500 < smaller < 600
    assert holding_nothing_any_more < 300


def test_where_the_mark_cannot_be_set_back_memory_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "PROC", tmp_path)
    monkeypatch.setattr(peak_memory, "SAMPLE_SECONDS", 0.02)
    _take(400)
    with PeakMemory() as small:
        time.sleep(0.2)
    with PeakMemory() as large:
        held = np.ones(300 * MB // 8)
        time.sleep(0.5)
        del held
    assert small.bytes is not None
    assert large.bytes is not None
    assert 250 * MB < large.bytes - small.bytes < 350 * MB


def test_nothing_is_said_where_nothing_can_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_memory, "PROC", tmp_path)
    monkeypatch.setitem(sys.modules, "psutil", None)
    with PeakMemory() as peak:
        _take(10)
    assert peak.bytes is None


def test_an_error_passes_and_the_watching_ends() -> None:
    with pytest.raises(ValueError, match="x"), PeakMemory() as peak:
        raise ValueError("x")
    assert peak.bytes
    assert not peak._thread.is_alive()
