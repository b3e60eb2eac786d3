"""Single to merged: how often concepts of the embedded world show alone, after merging, and two in one picture.

    python -m tests.bench.bench_merge_table --work FOLDER [--seeds 0 1 2] [--ways apart paper] [--sizes 2 3 5 9]

For sets of 2 (every pair), 3, 5 and 9 concepts, trained apart once per seed: each concept's rate alone with the merged
delta, and every ordered pair's in "a <new1> star and a <new2> heart", read by the attribute probe. A case is appended
to FOLDER/cases.jsonl when it is done, and what stands there is not measured again. The first five concepts may choose
settings; the other four are for reporting.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.core.formatting import json_text
from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.delta import Delta, load_delta
from cdkit.embedded import load_pipeline
from cdkit.embedded.concepts import CONCEPTS, concept
from cdkit.engines import create_engine
from cdkit.merging.config import MergeConfig
from cdkit.merging.problem import Factor, merge_changes, ordinary_factor, prepare
from cdkit.tokens.sample import captions_folder, sample_rows
from tests.embedded.quality import GUIDANCE, sample
from tests.support.attribute_probe import read_attributes
from tests.support.concept_measures import stage

NAMES = tuple(candidate.name for candidate in CONCEPTS)
# Every pair of concepts; then sets that share none, but for two of five among nine.
SETS = {2: list(combinations(NAMES, 2)), 3: [NAMES[:3], NAMES[3:6], NAMES[6:]], 5: [NAMES[:5], NAMES[4:]], 9: [NAMES]}
# As good as 25 on this model: 95 and 97 % of two patterned objects from words.
STEPS = 10
PLAIN, ORTHOGONAL, GATED = "custom-diffusion", "custom-diffusion-orthogonal", "custom-diffusion-gated"
# What a merge is given for each way of merging.
MERGES: dict[str, dict[str, Any]] = {
    "paper": {"apart": False},
    "apart": {},
    "average": {"way": "average"},
    "sum": {"way": "sum"},
    "fusion": {"way": "fusion"},
    "orthogonal": {"way": "sum"},
}
TRAININGS = ("joint", "sequential")
# Gated deltas are put side by side; alone they are a way of their own.
WAYS = ("alone", *MERGES, "alone-gated", "gated", *TRAININGS)


@dataclass(frozen=True)
class Case:
    """One set of concepts, brought together one way, from one training seed."""

    way: str
    seed: int
    names: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.way} {self.seed} {' '.join(self.names)}"


class Ground:
    """The folder of trainings, and the base model with the captions that merges keep in place."""

    def __init__(self, work: Path, samples: int) -> None:
        self.work, self.samples = work, samples
        self.index = work / "index"
        stage("index", self.index, captions=["embedded"], encoder="embedded")
        stage("tokens", work / "picks", index=str(self.index), min_count=0)
        self.pipeline = load_pipeline()

    @cached_property
    def factor(self) -> Factor:
        config = MergeConfig(deltas=["", ""], index=str(self.index))
        context = Context(create_engine("local", 1))
        drawn = sample_rows(captions_folder(self.index), config.captions_count, config.seed, context)
        return ordinary_factor(config, self.pipeline, drawn, context)

    def regularization(self, category: str) -> str:
        folder = self.work / f"{category}-set"
        prompts = [f"a photo of a {category}", f"a picture of a {category}"]
        stage("retrieve", folder, index=str(self.index), images="embedded", prompts=prompts, count=200)
        return str(folder)

    def train(self, label: str, names: Sequence[str], seed: int, **values: Any) -> Path:
        """A training of the concepts, each with its own number's token; its folder."""
        out = self.work / f"{label}-{seed}"
        categories = {name: concept(name).category for name in names}
        values |= {
            "concepts": {name: f"embedded:{name}" for name in names},
            "categories": categories,
            "regularization": {name: self.regularization(category) for name, category in categories.items()},
            "token": {name: token(name) for name in names},
            "tokens": str(self.work / "picks"),
        }
        stage("train", out, seed=seed, checkpoint_every=0, **values)
        return out

    def alone(self, name: str, seed: int, method: str = PLAIN) -> Delta:
        label = name if method == PLAIN else f"{name}-{method.rpartition('-')[2]}"
        return load_delta(self.train(label, [name], seed, method=method))

    def together(self, case: Case) -> list[Delta]:
        """What to sample the set with."""
        label = f"{'+'.join(str(NAMES.index(name) + 1) for name in case.names)}-{case.way}"
        if case.way == "joint":
            return [load_delta(self.train(label, case.names, case.seed, batch_size=16, prior_weight=1.0))]
        if case.way == "sequential":
            chain: list[Path] = []
            for number, name in enumerate(case.names):
                first = f"{name}" if not number else f"{label}-{number + 1}"
                chain.append(self.train(first, [name], case.seed, delta=[str(path) for path in chain]))
            return [load_delta(path) for path in chain]
        method = {"orthogonal": ORTHOGONAL, "gated": GATED}.get(case.way, PLAIN)
        deltas = [self.alone(name, case.seed, method) for name in case.names]
        if case.way == "gated":
            return deltas
        config = MergeConfig(deltas=["", ""], index=str(self.index), **MERGES[case.way])
        problem = prepare(config, self.pipeline, deltas, self.factor)
        changes, _ = merge_changes(config, problem)
        tokens = tuple(token for delta in deltas for token in delta.tokens)
        return [replace(deltas[0], changes=changes, tokens=tokens)]

    def shown(self, deltas: Sequence[Delta], asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[list[bool]]:
        """For every prompt and the concepts it names: in which of its samples each of them shows, concepts first."""
        prompts = [prompt for prompt, _ in asked for _ in range(self.samples)]
        with apply_deltas(self.pipeline, deltas):
            readings = read_attributes(sample(self.pipeline, prompts, 5, steps=STEPS, guidance=GUIDANCE))
        seen = []
        for place, (_, names) in enumerate(asked):
            part = readings[place * self.samples : (place + 1) * self.samples]
            seen.append([[concept(name).look in reading.looks for reading in part] for name in names])
        return seen


def token(name: str) -> str:
    """A concept's own word, whatever set it stands in."""
    return f"<new{NAMES.index(name) + 1}>"


def alone_prompt(name: str) -> str:
    return f"a photo of a {token(name)} {concept(name).category}"


def pair_prompt(first: str, second: str) -> str:
    return f"a {token(first)} {concept(first).category} and a {token(second)} {concept(second).category}"


def measure(ground: Ground, case: Case) -> dict[str, Any]:
    """Rates alone by concept; of ordered pairs [both, first, second] by their names."""
    row: dict[str, Any] = {"case": case.key, "way": case.way, "seed": case.seed, "names": case.names}
    if case.way.startswith("alone"):
        delta = ground.alone(*case.names, case.seed, GATED if case.way == "alone-gated" else PLAIN)
        asked = [(alone_prompt(case.names[0]), case.names)]
        return row | {"alone": {case.names[0]: rate(ground.shown([delta], asked)[0][0])}}
    asked = [(alone_prompt(name), (name,)) for name in case.names]
    asked += [(pair_prompt(*pair), pair) for pair in permutations(case.names, 2)]
    seen = ground.shown(ground.together(case), asked)
    row["alone"] = {name: rate(shown[0]) for name, shown in zip(case.names, seen, strict=False)}
    row["pairs"] = {
        " ".join(names): [rate(np.all(shown, axis=0)), *map(rate, shown)]
        for (_, names), shown in zip(asked[len(case.names) :], seen[len(case.names) :], strict=True)
    }
    return row


def rate(shown: Iterable[Any]) -> float:
    return round(float(np.mean(list(shown))), 4)


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every case that was asked for, the largest sets of a seed first."""
    asked = []
    for seed in arguments.seeds:
        for way in arguments.ways:
            is_alone = way.startswith("alone")
            sets = [(name,) for name in NAMES] if is_alone else []
            for size in () if is_alone else arguments.sizes:
                # A training for each of 36 pairs is hours.
                sets += SETS[size] if way not in TRAININGS or size > 2 else []
            asked += [Case(way, seed, tuple(names)) for names in sets]
    return sorted(asked, key=lambda case: case.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[9, 5, 3, 2], choices=list(SETS))
    parser.add_argument("--samples", type=int, default=8, help="of each prompt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ground = Ground(arguments.work, arguments.samples)
    file = arguments.work / "cases.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    done = {json.loads(line)["case"] for line in lines}
    for case in cases(arguments):
        if case.key not in done:
            with file.open("a") as cases_file:
                cases_file.write(json_text(measure(ground, case), indent=None) + "\n")
            print(case.key, flush=True)


if __name__ == "__main__":
    main()
