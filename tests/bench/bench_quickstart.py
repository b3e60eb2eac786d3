"""How often the shipped quickstart's two concepts both show, at several training seeds.

    python -m tests.bench.bench_quickstart [--seeds 0 1 2] [--samples 16] [--work FOLDER]

Runs the quickstart pipeline as it is shipped, once per training seed, up to its picture of both, with more samples of
each prompt, and reads them with the attribute probe. Prints the share by seed and prompt, each seed's mean, and the
lowest of them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cdkit.cli.app import execute_command
from cdkit.core.formatting import json_text
from tests.support.concept_measures import share
from tests.support.samples import read_samples

NAMES = ("striped-star", "checkered-heart")
TRAININGS = ("star-tuned", "heart-tuned")


def rates(seed: int, samples: int, work: Path) -> dict[str, float]:
    """The share of each prompt's pictures in which both concepts show, by prompt."""
    # One folder: what does not depend on the seed is found done.
    out = work / "run"
    settings = [f"{name}.seed={seed}" for name in TRAININGS] + [f"both.seeds={samples}"]
    words = [word for setting in settings for word in ("--set", setting)]
    code = execute_command(["run", "quickstart", *words, "--stop-after", "both", "--out", str(out)])
    if code:
        raise SystemExit(code)
    by_prompt: dict[str, list[bool]] = {}
    for sample, image in read_samples(out / "both"):
        by_prompt.setdefault(sample.prompt, []).append(share([image.convert("RGB")], *NAMES) == 1)
    return {prompt: round(float(np.mean(shown)), 4) for prompt, shown in by_prompt.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        rows = {seed: rates(seed, arguments.samples, work) for seed in arguments.seeds}
    means = {seed: round(float(np.mean(list(row.values()))), 4) for seed, row in rows.items()}
    print(json_text({"benchmark": "quickstart", "by_seed": rows, "mean": means, "lowest": min(means.values())}))


if __name__ == "__main__":
    main()
