"""Three held-out concepts of the embedded world times five methods, at an equal step budget.

    python -m tests.bench.bench_methods [--steps 250] [--samples 64] [--prior 100] [--work FOLDER]

Per method: how often the attribute probe sees the concept in samples of its prompt, how far samples of the class
prompt move from the base model's at the same seeds (1 − cosine of the embedded CLIP's image features) and how often
the probe sees the concept in them, the delta's size, and the seconds of training. Every method has the embedded
preset's own learning rates, the same regularization images, and the same number of steps. What is in FOLDER already
is not made again.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from cdkit.core.formatting import json_text
from cdkit.deltas.methods import METHODS
from cdkit.embedded.concepts import concept
from tests.support.concept_measures import drift, pictures, share, stage

# One of a new combination, one of a new colour, one of a new texture.
CONCEPTS = ("striped-star", "pink-heart", "dotted-ball")
SAMPLING_STEPS, GUIDANCE = 25, 4.0
BATCH = 32


def measure(name: str, work: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods on one concept."""
    category = concept(name).category
    sampling = {"seeds": arguments.samples, "steps": SAMPLING_STEPS, "guidance": GUIDANCE, "batch_size": BATCH}
    class_prompt = f"a photo of a {category}"
    prior = work / f"{category}-prior"
    drawn = {"prompts": [class_prompt], "count": arguments.prior, "steps": SAMPLING_STEPS, "guidance": GUIDANCE}
    stage("class-images", prior, **drawn, batch_size=BATCH)
    base = work / f"{category}-base"
    stage("sample", base, prompts=[class_prompt], **sampling)
    of_base = pictures(base)
    rows = [{"concept": name, "method": "base model", "class_fires": share(of_base, name)}]
    for method in arguments.methods:
        tuned = work / f"{name}-{method}"
        values: dict[str, Any] = {"concepts": {category: f"embedded:{name}"}, "regularization": {category: str(prior)}}
        result = stage("train", tuned, method=method, steps=arguments.steps, **values)
        word = result.manifest.details["tokens"][0]["text"]
        prompt = f"a photo of a {word} {category}"
        samples = work / f"{name}-{method}-samples"
        stage("sample", samples, deltas=[str(tuned)], prompts=[prompt, class_prompt], **sampling)
        images = pictures(samples)
        own, of_class = images[: arguments.samples], images[arguments.samples :]
        rows.append(
            {
                "concept": name,
                "method": method,
                "fires": share(own, name),
                "class_fires": share(of_class, name),
                "class_drift": round(drift(of_class, of_base), 4),
                "kilobytes": round((tuned / "delta.safetensors").stat().st_size / 1e3, 1),
                "seconds": round(result.manifest.details["seconds"], 1),
            }
        )
        print(json_text(rows[-1]), flush=True)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, and each method's mean over the concepts."""
    columns = ["concept", "method", "fires", "class_fires", "class_drift", "kilobytes", "seconds"]
    means = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        mean = {key: round(float(np.mean([row[key] for row in own])), 3) for key in columns[2:] if key in own[0]}
        means.append({"concept": "mean", "method": method, **mean})
    table = Table(*columns)
    for row in (*rows, *means):
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--prior", type=int, default=100, help="regularization images, drawn by the base model")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--concepts", nargs="+", default=CONCEPTS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        rows = [row for name in arguments.concepts for row in measure(name, work, arguments)]
    show(rows)
    print(json_text({"benchmark": "methods", "steps": arguments.steps, "samples": arguments.samples, "rows": rows}))


if __name__ == "__main__":
    main()
