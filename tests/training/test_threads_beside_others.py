"""A training beside other busy processes takes its share of the CPUs, and no longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cdkit.core.machine import cpu_count
from cdkit.core.threads import NUMBERS, WAITING

STEPS = 120
SHARE = 3.0
# Alone and beside others by turns, so that what else the machine does falls on both.
ROUNDS = 2
TRAINING = """
import json, sys, time
from pathlib import Path
from cdkit.execute import execute
from cdkit.training.config import TrainConfig
from cdkit.training.loop import Loop

run = Loop.run
def timed(self, *arguments):
    clock, cpu = time.monotonic(), time.process_time()
    run(self, *arguments)
    print(json.dumps([time.monotonic() - clock, time.process_time() - cpu]))
Loop.run = timed
config = TrainConfig(concepts={"star": "embedded:striped-star"}, steps=int(sys.argv[2]), checkpoint_every=0)
execute("train", config, Path(sys.argv[1]))
"""


@contextmanager
def _busy(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def _seconds(out: Path) -> tuple[float, float]:
    """On the clock and of CPU time, of the steps alone: a start takes the same CPU time for anybody."""
    # As a user starts it: nothing is said about threads.
    environment = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *WAITING)}
    command = [sys.executable, "-c", TRAINING, str(out), str(STEPS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    clock, cpu = json.loads(done.stdout.splitlines()[-1])
    return float(clock), float(cpu)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_120_steps_beside_two_busy_loops_take_at_most_three_times_as_long(tmp_path: Path) -> None:
    busy_already = os.getloadavg()[0] > cpu_count() / 2
    alone, beside = [], []
    for number in range(ROUNDS):
        alone.append(_seconds(tmp_path / f"alone-{number}"))
        with _busy(2):
            beside.append(_seconds(tmp_path / f"beside-{number}"))
    # Threads that wait awake use up what they wait for: a training takes ten times the CPU time.
    assert min(cpu for _, cpu in beside) <= 2 * min(cpu for _, cpu in alone), (alone, beside)
    if busy_already:
        pytest.skip(f"this machine was busy already; on the clock {alone} alone and {beside} beside two more")
    assert min(clock for clock, _ in beside) <= SHARE * min(clock for clock, _ in alone), (alone, beside)
