"""Goes on from every folder that a kill or a power loss may leave, and counts how that ended.

    python -m tests.faults.matrix [--work FOLDER] [--sample N] [--names NAME …]

Prints a line for each command, and one JSON object at last. --sample: go on from so many points of each command only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path

from tests.faults.crash_points import Point, distinct, kill_points, power_loss_points
from tests.faults.recorder import FOLDER, Contents, Effect, Recording
from tests.faults.scenarios import Facts, Material, Scenario, scenarios

# Files that grow line by line under their own name, and those of work in progress that a journal or a size tells to be
# whole; every other one is renamed into place.
JOURNALS = ("metrics.csv", "inspected.jsonl", ".lock")


@dataclass
class Tally:
    """How it went for one command. effects: recorded; points: kills and power losses thought of; tried: those of
    them that leave another folder than the points before, gone on from; lost: those that did not end as they must."""

    effects: int = 0
    points: int = 0
    distinct: int = 0
    tried: int = 0
    lost: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "lost": len(self.lost)}


@contextmanager
def quickened() -> Iterator[None]:
    """Keep what every run loads anew and none changes, let nobody wait for a disk (what a kill and a power loss leave
    is known from the recording), and let a training draw one small step where it draws 25 for eight pictures."""
    from cdkit import encoders
    from cdkit.training import progress_samples

    kept = encoders.load_text_encoder, os.fsync, progress_samples.SEEDS, progress_samples.STEPS
    encoders.load_text_encoder = cache(encoders.load_text_encoder)
    os.fsync = lambda descriptor: None
    progress_samples.SEEDS, progress_samples.STEPS = 1, 1
    try:
        yield
    finally:
        encoders.load_text_encoder, os.fsync, progress_samples.SEEDS, progress_samples.STEPS = kept


class Matrix:
    """Records a command, and goes on from what it may leave. Tries that end wrongly are kept below `work`."""

    def __init__(self, material: Material, work: Path) -> None:
        self.work = work
        work.mkdir(parents=True, exist_ok=True)
        self.scenarios = scenarios(material)
        self.tries = 0
        self._recorded: dict[str, tuple[Recording, Facts]] = {}

    def folder(self) -> Path:
        """Where the next try is to be: all have the same place, since some files name it."""
        place = self.work / "try"
        self.tries += 1
        if place.exists():
            place.rename(self.work / f"{self.tries - 1:06d}")
        return place

    def record(self, name: str) -> tuple[Recording, Facts]:
        """The effects of a run that nothing befalls, and what it leaves."""
        if name in self._recorded:
            return self._recorded[name]
        scenario, root, recording = self.scenarios[name], self.folder(), Recording()
        root.mkdir()
        scenario.prepare(root / "out")
        recording.record(root, lambda: scenario.run(root / "out"))
        facts = scenario.result(root / "out")
        shutil.rmtree(root)
        self._recorded[name] = recording, facts
        return recording, facts

    def whole(self, name: str) -> Facts:
        return self.record(name)[1]

    def effects(self, name: str) -> list[Effect]:
        return self.record(name)[0].effects

    def try_points(self, name: str, sample: int | None = None) -> Tally:
        """Go on from all points of a command, or from some, chosen at random."""
        recording, facts = self.record(name)
        number, points = distinct(chain(kill_points(recording), power_loss_points(recording)))
        tally = Tally(len(recording.effects), number, len(points))
        if sample is not None and sample < len(points):
            points = random.Random(name).sample(points, sample)
        for point in points:
            tally.tried += 1
            problem = self.go_on(self.scenarios[name], recording.contents, point, facts)
            if problem:
                tally.lost.append(f"{name}: {point.label}: {problem}")
        return tally

    def go_on(self, scenario: Scenario, contents: Contents, point: Point, facts: Facts) -> str:
        """Run the command again in the folder as it was left; what is wrong with what comes out."""
        root = self.folder()
        contents.build(point.tree, root)
        out = root / "out"
        try:
            scenario.go_on(out)
            found = scenario.result(out)
        except Exception as error:
            return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}"
        different = sorted(key for key in {*found, *facts} if found.get(key) != facts.get(key))
        litter = [path.name for path in root.rglob(".tmp-*")]
        if different or litter:
            return f"another result: {', '.join(different)}" if different else f"left: {litter}"
        shutil.rmtree(root)
        return ""


def written_around(recording: Recording) -> list[str]:
    """Files that got their content under their own name rather than being renamed into place."""
    around = set()
    before = recording.trees[0]
    for tree in recording.trees[1:]:
        contents = {entry.number: entry.content for entry in before.values()}
        for name, entry in tree.items():
            allowed = (
                ".tmp-" in name
                or name.endswith(JOURNALS)
                or name.startswith("out/building/")
                or entry.content == FOLDER
            )
            if not allowed and contents.get(entry.number) != entry.content:
                around.add(name)
        before = tree
    return sorted(around)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="keep the material and failed tries here")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--names", nargs="*")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, quickened():
        root = options.work or Path(scratch)
        os.environ["CDKIT_CACHE"] = str(root / "cache")
        material = Material(root / "material")
        if not material.root.exists():
            material.make()
        matrix = Matrix(material, root / f"tries-{os.getpid()}")
        total = Tally()
        for name in options.names or matrix.scenarios:
            clock = time.process_time()
            tally = matrix.try_points(name, options.sample)
            print(name, json.dumps(tally.as_json()), f"{time.process_time() - clock:.0f} s of CPU", flush=True)
            print(*tally.lost, sep="\n", end="\n" if tally.lost else "", file=sys.stderr, flush=True)
            total = Tally(
                *(getattr(total, key) + getattr(tally, key) for key in ("effects", "points", "distinct", "tried")),
                lost=total.lost + tally.lost,
            )
    print(json.dumps(total.as_json()))
    return 1 if total.lost else 0


if __name__ == "__main__":
    sys.exit(main())
