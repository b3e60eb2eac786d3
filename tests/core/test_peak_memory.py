"""The memory of each stage, not the largest of all that ran before it in the process."""

from __future__ import annotations

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
HUNGRY = "x = bytearray({megabytes} << 20); import time; time.sleep({seconds})"


def _take(megabytes: int) -> None:
    """Touch this much memory and give it back."""
    np.ones(megabytes * MB // 8).sum()


def _child(megabytes: int, seconds: float) -> None:
    subprocess.run([sys.executable, "-c", HUNGRY.format(megabytes=megabytes, seconds=seconds)], check=True)


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


def test_a_child_counts_while_it_lives_and_when_it_is_gone() -> None:
    _child(300, 0)
    with PeakMemory() as nothing:
        pass
    with PeakMemory() as larger:
        _child(700, 0)
    with PeakMemory() as smaller:
        _child(500, 2.5)  # less than the child before: seen only while it lives
    assert nothing.bytes is not None
    assert larger.bytes is not None
    assert smaller.bytes is not None
    assert nothing.bytes < 500 * MB
    assert 700 * MB < larger.bytes < 800 * MB
    assert 500 * MB < smaller.bytes < 600 * MB


def test_a_child_of_before_counts_by_what_it_holds_now() -> None:
    program = "x = bytearray(600 << 20); del x; print('ready', flush=True); import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with PeakMemory() as peak:
            time.sleep(1.5)
        assert peak.bytes is not None
        assert peak.bytes < 600 * MB
    finally:
        child.kill()
        child.wait()


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
