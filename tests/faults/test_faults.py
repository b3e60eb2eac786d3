"""Kills, full disks, a read-only folder, two runs at once: the rerun completes, and nothing that was there is lost.

The short form is in every run; `-m slow` is the campaign. Each prints faults injected, runs completed and data lost.
"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.counts import count
from tests.faults.tour import Tour, digests, finished, reached
from tests.support.file_systems import mounted, read_only

KILLS_PER_STEP = 2
DISKS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
LARGE = 512


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tour]:
    """The small quickstart, run once without any fault as `whole`."""
    tour = Tour(tmp_path_factory.mktemp("faults"))
    tour.make_pool()
    tour.complete(tour.folder / "whole")
    tour.time_steps(tour.folder / "whole")
    tour.completed = 0
    yield tour
    print(f"\n{tour.report()}")
    outcomes = {"survived": tour.faults - tour.lost, "lost": tour.lost}
    count("kills, full and read-only disks, two runs at once, in the quickstart", outcomes)


@pytest.fixture(scope="module")
def whole(tour: Tour) -> Path:
    return tour.folder / "whole"


def kill_in(tour: Tour, out: Path, step: str, moments: random.Random) -> bool:
    """Run until `step`, or where that is done a later one, has begun, and kill it at a random moment of it."""
    before = finished(out)
    running = tour.launch(out)
    if reached(running, out, tour.steps[tour.steps.index(step) :]):
        time.sleep(moments.uniform(0, tour.seconds[step]))
    killed = running.kill()
    tour.faults += killed
    assert "Traceback" not in running.words()
    after = finished(out)
    tour.lost += sum(after.get(name) != known for name, known in before.items())
    return killed


def check_same(tour: Tour, out: Path, whole: Path) -> None:
    """Complete the run, and compare it with the one that was left alone."""
    before = finished(out)
    tour.complete(out)
    after = finished(out)
    tour.lost += sum(after.get(name) != known for name, known in before.items())
    expected, found = digests(whole), digests(out)
    tour.lost += sum(found.get(name) != digest for name, digest in expected.items())
    assert found == expected
    assert (out / "page" / "report.html").exists()
    assert not list(out.rglob(".tmp-*")), "what a kill left half-written is gone"
    assert tour.lost == 0


def test_what_is_compared_is_there(whole: Path) -> None:
    names = {name.split("/")[0] for name in digests(whole)}
    assert {"index", "star-set", "heart-set", "picks", "star-tuned", "heart-tuned", "merged", "both"} <= names
    assert len(digests(whole)) > 20


@pytest.mark.slow
def test_killed_runs_are_continued(tour: Tour, whole: Path) -> None:
    moments, out = random.Random(1), tour.folder / "killed"
    for step in ("index", "star-set", "star-tuned", "star-after"):
        kill_in(tour, out, step, moments)
    assert tour.faults >= 2
    check_same(tour, out, whole)


def test_two_runs_on_one_folder(tour: Tour, whole: Path) -> None:
    out = tour.folder / "twice"
    first = tour.launch(out)
    assert reached(first, out, ["index"])
    second = tour.launch(out)
    tour.faults += 1
    assert second.wait() == 7
    assert "Another run (process" in second.words()
    assert "Hint:" in second.words()
    assert first.wait() == 0, first.words()
    check_same(tour, out, whole)


@pytest.mark.slow
def test_a_full_disk(tour: Tour, whole: Path) -> None:
    _fill(tour, whole, 0.5)


def test_a_folder_that_cannot_be_written_to(tour: Tour) -> None:
    with mounted(tour.folder / "mounted", "size=64m") as disk:
        read_only(disk)
        arguments = ["sample", "--prompt", "a star", "--seeds", "1", "--steps", "1", "--out", str(disk / "samples")]
        for running in (tour.launch(disk / "run"), tour.start(arguments)):
            tour.faults += 1
            assert running.wait() == 7, running.words()
            assert "Cannot write to" in running.words()
            assert "Traceback" not in running.words()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        running = tour.start(arguments)
        assert running.wait() == 0, running.words()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_step_is_killed(tour: Tour, whole: Path) -> None:
    moments, out, before = random.Random(2), tour.folder / "campaign", tour.faults
    for step in tour.steps:
        for _ in range(KILLS_PER_STEP):
            kill_in(tour, out, step, moments)
    while tour.faults - before < 30:
        out = tour.folder / f"campaign-{tour.logs}"
        for step in moments.sample(tour.steps, 6):
            kill_in(tour, out, step, moments)
    check_same(tour, tour.folder / "campaign", whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("share", DISKS)
def test_disks_of_every_size(tour: Tour, whole: Path, share: float) -> None:
    _fill(tour, whole, share)


def _fill(tour: Tour, whole: Path, share: float) -> None:
    """Run on a disk that holds a share of what the run makes, and then on one that has been enlarged."""
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    with mounted(tour.folder / f"disk-{share}", f"size={int(share * needed) >> 10}k") as disk:
        out = disk / "run"
        running = tour.launch(out)
        tour.faults += 1
        assert running.wait() == 7, running.words()
        assert "The disk is full" in running.words()
        assert "Traceback" not in running.words()
        subprocess.run(["mount", "-o", f"remount,size={LARGE}m", str(disk)], check=True)
        check_same(tour, out, whole)
