"""Benchmark of starting: CPU seconds (user and system) that commands on `embedded` take to do next to nothing.

    python -m tests.bench.bench_start [--before CHECKOUT] [--rounds 5] [--only COMMAND …] [--work FOLDER]

--before: another checkout of the package, whose commands take turns with this one's in the same environment. Both have
an index of 120 captions and two deltas of one step, made beforehand.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cdkit.core.formatting import json_text

HERE = Path(__file__).parents[2]
INDEX, STAR, HEART, OUT = "{index}", "{star}", "{heart}", "{out}"
COMMANDS = {
    "sample": ["sample", "--prompt", "a red star", "--seeds", "1", "--steps", "1", "--out", OUT],
    "train": ["train", "--concept", "star=embedded:striped-star", "--steps", "1", "--out", OUT],
    "merge": ["merge", STAR, HEART, "--index", INDEX, "--out", OUT],
    "inspect weights": ["inspect", "weights", "--tuned", STAR],
    "index search": ["index", "search", INDEX, "a photo of a star"],
    "delta inspect": ["delta", "inspect", STAR],
    "doctor": ["doctor"],
}
CONCEPTS = {STAR: "star=embedded:striped-star", HEART: "heart=embedded:checkered-heart"}


def cpu_seconds(checkout: Path, arguments: Sequence[str], folder: Path) -> float:
    """What one command took of the CPU, with all processes it started."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "HF_HUB_OFFLINE": "1",
        "CDKIT_CACHE": str(folder / "cache"),
    }
    named = {part: str(folder / part.strip("{}")) for part in (INDEX, STAR, HEART, OUT)}
    shutil.rmtree(named[OUT], ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "cdkit", *(named.get(argument, argument) for argument in arguments)]
    subprocess.run(
        command, env=environment, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(checkout: Path, folder: Path) -> None:
    """An index and two deltas of this checkout's own; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = [
        f"a photo of a {colour} star number {number}" for number in range(40) for colour in ("red", "blue", "green")
    ]
    (folder / "captions.csv").write_text("\n".join(["caption", *captions]))
    cpu_seconds(checkout, ["index", "build", "--captions", str(folder / "captions.csv"), "--out", INDEX], folder)
    for name, concept in CONCEPTS.items():
        cpu_seconds(checkout, ["train", "--concept", concept, "--steps", "1", "--out", name], folder)


def measure(
    checkouts: dict[str, Path], names: Sequence[str], rounds: int, work: Path
) -> dict[str, dict[str, list[float]]]:
    """CPU seconds by command and checkout, the checkouts by turns."""
    for name, checkout in checkouts.items():
        prepare(checkout, work / name)
    taken: dict[str, dict[str, list[float]]] = {command: {name: [] for name in checkouts} for command in names}
    for _ in range(rounds):
        for command in names:
            for name, checkout in checkouts.items():
                taken[command][name].append(round(cpu_seconds(checkout, COMMANDS[command], work / name), 2))
                print(command, name, taken[command][name][-1], flush=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    checkouts = {**({"before": options.before.resolve()} if options.before else {}), "now": HERE}
    with tempfile.TemporaryDirectory() as scratch:
        taken = measure(checkouts, options.only, options.rounds, (options.work or Path(scratch)).resolve())
    medians = {
        command: {name: statistics.median(times) for name, times in by.items()} for command, by in taken.items()
    }
    for command, by in medians.items():
        share = f", {by['now'] / by['before']:.2f} of before" if options.before else ""
        print(f"{command}: {', '.join(f'{name} {seconds:.2f} s' for name, seconds in by.items())}{share}")
    print(json_text({"rounds": options.rounds, "cpu_seconds": medians, "all": taken}))


if __name__ == "__main__":
    main()
