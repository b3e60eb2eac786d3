"""What Custom Diffusion reaches on held-out concepts of the embedded world, alone, jointly trained and merged.

    python -m tests.bench.bench_concepts [--seeds 0 1] [--steps 250] [--samples 64] [--work FOLDER]

Alone: how often the attribute probe sees the concept with the token (in four places), with the class word alone
afterwards and in the base model; and how far samples of the class prompt moved from the base model's at the same seeds
(1 − cosine of the embedded CLIP's image features), trained with a retrieved regularization set and without one.
Pairs: how often it sees both concepts of a two-concept prompt, trained jointly, merged from two trainings, and merged
as in the paper (not told apart); and each alone before and after merging. Every training has the embedded preset's
settings (joint ones another batch size and prior weight) unless --train changes one. What is in FOLDER already is not
made again.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import yaml

from cdkit.core.formatting import json_text
from cdkit.embedded.concepts import concept
from tests.embedded.quality import GUIDANCE, PLACES, STEPS, words
from tests.support.concept_measures import drift, pictures, share, stage

# Two new combinations and a new colour.
ALONE = ("striped-star", "pink-heart", "checkered-mug")
PAIRS = ("striped-star+checkered-heart",)
# Two concepts share a batch: as many samples of each in a step as alone, not more steps, in which words grow. What
# pipelines/two-concepts-joint.yaml does on this model.
JOINT = {"batch_size": 16, "prior_weight": 1.0}


class Bench:
    """A folder of stages, made when they are asked for."""

    def __init__(self, work: Path, arguments: argparse.Namespace) -> None:
        self.work = work
        self.arguments = arguments
        self.training = dict(yaml.safe_load(f"{{{', '.join(arguments.train)}}}") or {})

    def samples(self, name: str, prompts: list[str], deltas: list[Path]) -> Any:
        """As many samples of all prompts together as were asked for, in the prompts' order."""
        first = self.arguments.first_seed
        folder = self.work / f"{name}-{first}"
        seeds = self.arguments.samples // len(prompts)
        values = {"prompts": prompts, "seeds": seeds, "first_seed": first, "batch_size": 32}
        stage("sample", folder, deltas=[str(path) for path in deltas], steps=STEPS, guidance=GUIDANCE, **values)
        return pictures(folder)

    def regularization(self, category: str) -> Path:
        """The class word's 200 images out of the embedded pool."""
        index, folder = self.work / "index", self.work / f"{category}-set"
        stage("index", index, captions=["embedded"], encoder="embedded")
        prompts = [f"a photo of a {category}", f"a picture of a {category}"]
        stage("retrieve", folder, index=str(index), images="embedded", prompts=prompts, count=200)
        return folder

    def train(self, names: list[str], steps: int, seed: int, *, regularize: bool, first_token: int = 1) -> Path:
        """A training of the concepts; its folder."""
        categories = {concept(name).category: name for name in names}
        out = self.work / f"{'+'.join(names)}-{steps}-{seed}-{first_token}{'' if regularize else '-without'}"
        values: dict[str, Any] = {
            "concepts": {word: f"embedded:{name}" for word, name in categories.items()},
            "regularization": {word: str(self.regularization(word)) for word in categories} if regularize else {},
            "keep": "images" if regularize else "none",
            "token": {word: f"<new{number}>" for number, word in enumerate(categories, start=first_token)},
        }
        values |= JOINT if len(names) > 1 else {}
        result = stage("train", out, steps=steps, seed=seed, checkpoint_every=0, **{**values, **self.training})
        print(f"{out.name}: {result.manifest.details['seconds']:.1f} s", flush=True)
        return out


def alone(bench: Bench, name: str, seed: int) -> dict[str, Any]:
    """One concept with and without regularization images."""
    word = concept(name).category
    plain = [f"a photo of a {word}"]
    placed = [f"a photo of a {word} {place}" for place in PLACES.values()]
    of_base = bench.samples(f"{word}-base", plain, [])
    row: dict[str, Any] = {"concept": name, "seed": seed, "base": share(of_base, name)}
    row["base_in_places"] = share(bench.samples(f"{word}-base-placed", placed, []), name)
    for regularize in (True, False):
        tuned = bench.train([name], bench.arguments.steps, seed, regularize=regularize)
        images = bench.samples(f"{tuned.name}-class", plain, [tuned])
        kind = "with" if regularize else "without"
        row[f"drift_{kind}"] = round(drift(images, of_base), 4)
        row[f"class_{kind}"] = share(images, name)
        if regularize:
            own = [f"a photo of a <new1> {word} {place}" for place in PLACES.values()]
            row["token"] = share(bench.samples(f"{tuned.name}-token", own, [tuned]), name)
            row["class_in_places"] = share(bench.samples(f"{tuned.name}-class-placed", placed, [tuned]), name)
    row["drift_ratio"] = round(row["drift_with"] / row["drift_without"], 3)
    return row


def pair(bench: Bench, names: list[str], seed: int) -> dict[str, Any]:
    """Two concepts in one prompt: the base model (by their classes, by their looks), jointly trained, merged."""
    first, second = (concept(name).category for name in names)
    steps = bench.arguments.pair_steps
    joint = bench.train(names, 2 * steps, seed, regularize=True)
    parts = [bench.train([name], steps, seed, regularize=True, first_token=n) for n, name in enumerate(names, start=1)]
    merged = {}
    row: dict[str, Any] = {"pair": "+".join(names), "seed": seed}
    for kind, apart in (("merged", True), ("merged-as-paper", False)):
        merged[kind] = bench.work / f"{'+'.join(names)}-{steps}-{seed}-{kind}"
        values = {"deltas": [str(part) for part in parts], "index": str(bench.work / "index"), "apart": apart}
        details = stage("merge", merged[kind], **values).manifest.details
        row |= {f"{kind}_{key}": details[key] for key in ("seconds", "constraint_residual", "drift")}
    prompt = [f"a <new1> {first} and a <new2> {second}"]
    row["base"] = share(bench.samples(f"{first}-{second}-base", [f"a {first} and a {second}"], []), *names)
    in_words = " and ".join(words(concept(name).look) for name in names)
    row["base_in_words"] = share(bench.samples(f"{first}-{second}-words", [in_words], []), *names)
    for kind, delta in {"joint": joint, **merged}.items():
        images = bench.samples(f"{delta.name}-both", prompt, [delta])
        row[kind] = share(images, *names)
        row[f"{kind}_each"] = [share(images, name) for name in names]
    for kind, deltas in (("before", parts), ("after", [merged["merged"]] * len(names))):
        row[f"alone_{kind}"] = [
            share(bench.samples(f"{delta.name}-alone-{number}", [f"a photo of a <new{number}> {word}"], [delta]), name)
            for number, (delta, word, name) in enumerate(zip(deltas, (first, second), names, strict=True), start=1)
        ]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the trainings")
    parser.add_argument("--steps", type=int, default=250, help="for one concept alone")
    parser.add_argument("--pair-steps", type=int, default=120, help="for each concept of a pair")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=5_000, help="of the samples")
    parser.add_argument("--alone", nargs="*", default=ALONE)
    parser.add_argument("--pairs", nargs="*", default=PAIRS)
    parser.add_argument("--train", nargs="*", default=[], metavar="KEY: VALUE", help="settings of every training")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(arguments.work or Path(scratch), arguments)
        for seed in arguments.seeds:
            for name in arguments.alone:
                rows.append(alone(bench, name, seed))
                print(json_text(rows[-1]), flush=True)
            for names in arguments.pairs:
                rows.append(pair(bench, names.split("+"), seed))
                print(json_text(rows[-1]), flush=True)
    print(json_text({"benchmark": "concepts", "steps": arguments.steps, "rows": rows}))


if __name__ == "__main__":
    main()
