"""Single to merged: how often concepts of the embedded world show alone, after merging, and two in one picture.

    python -m tests.bench.bench_merge_table --work FOLDER [--seeds 0 1 2] [--ways apart paper] [--sizes 2 3 5 9]
        [--pairs-of 5] [--pictures PNG]

For sets of 2 (every pair), 3, 5 and 9 concepts, trained apart once per seed: each concept's rate alone with the merged
delta, and every ordered pair's in "a <new1> star and a <new2> heart", read by the attribute probe. A case is appended
to FOLDER/cases.jsonl when it is done, and what stands there is not measured again. The first five concepts may choose
settings; the other four are for reporting. The last line sums up, over the training seeds: pairs of concepts that show
in at least half of the samples alone, and all pairs. --pictures draws the worst and the best of the former, by the
default way.
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
from PIL import Image

from cdkit.core.formatting import json_text
from cdkit.core.protocols import Context
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.delta import Delta, load_delta
from cdkit.embedded import load_pipeline
from cdkit.embedded.concepts import CONCEPTS, concept
from cdkit.engines import create_engine
from cdkit.merging.config import MergeConfig
from cdkit.merging.problem import Factor, merge_changes, ordinary_factor, prepare
from cdkit.pictures.grid import Block, Cell, write_grid
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
                of_size = SETS[size] if way not in TRAININGS or size > 2 else []
                some = NAMES[: arguments.pairs_of]
                sets += [names for names in of_size if size > 2 or set(names) <= set(some)]
            asked += [Case(way, seed, tuple(names)) for names in sets]
    return sorted(asked, key=lambda case: case.seed)


LEARNED = 0.5
Pair = tuple[str, str]


def pair_rates(rows: Sequence[dict[str, Any]], way: str, size: int) -> dict[int, dict[Pair, list[float]]]:
    """[both, first, second] of every ordered pair, by training seed; of a pair that stands in two sets, the last's."""
    rates: dict[int, dict[Pair, list[float]]] = {}
    for row in rows:
        if row["way"] == way and len(row["names"]) == size:
            named = {(pair.split()[0], pair.split()[1]): values for pair, values in row["pairs"].items()}
            rates.setdefault(row["seed"], {}).update(named)
    return rates


def learned(rows: Sequence[dict[str, Any]], way: str) -> dict[int, set[str]]:
    """The concepts that show in at least half of the samples alone, by training seed."""
    names: dict[int, set[str]] = {}
    for row in rows:
        if row["way"] == ("alone-gated" if way == "gated" else "alone"):
            names.setdefault(row["seed"], set()).update(
                name for name, shown in row["alone"].items() if shown >= LEARNED
            )
    return names


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By way and number: pairs, mean, worst, share that never show, and each seed's mean; and what is left alone."""
    summed: dict[str, Any] = {}
    for way in dict.fromkeys(row["way"] for row in rows if not row["way"].startswith("alone")):
        fit = learned(rows, way)
        for size in SETS:
            by_seed = pair_rates(rows, way, size)
            of_learned = [
                [values[0] for names, values in pairs.items() if set(names) <= fit.get(seed, set())]
                for seed, pairs in by_seed.items()
            ]
            everything = [values[0] for pairs in by_seed.values() for values in pairs.values()]
            if everything:
                summed[f"{way} {size}"] = {
                    "learned": _figures([rate for rates in of_learned for rate in rates]),
                    "by_seed": [round(float(np.mean(rates)), 4) for rates in of_learned if rates],
                    "all": _figures(everything),
                    "alone_after": _alone(rows, way, size),
                }
    return {"alone": _alone(rows, "alone", 1), "alone_gated": _alone(rows, "alone-gated", 1), **summed}


def _figures(rates: Sequence[float]) -> dict[str, float]:
    if not rates:
        return {"pairs": 0}
    return {
        "pairs": len(rates),
        "mean": round(float(np.mean(rates)), 4),
        "median": round(float(np.median(rates)), 4),
        "worst": min(rates),
        "never": round(float(np.mean(np.array(rates) == 0)), 4),
    }


def _alone(rows: Sequence[dict[str, Any]], way: str, size: int) -> dict[str, list[float]]:
    """Each concept's rate alone, seed by seed."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row["way"] == way and len(row["names"]) == size:
            for name, shown in row["alone"].items():
                rates.setdefault(name, []).append(shown)
    return rates


def draw_extremes(ground: Ground, rows: Sequence[dict[str, Any]], target: Path) -> None:
    """A sheet of the worst and the best ordered pair of two learned concepts, seed 0, merged two by two."""
    fit = learned(rows, "apart")[0]
    rates = {names: both[0] for names, both in pair_rates(rows, "apart", 2)[0].items() if set(names) <= fit}
    blocks, folder = [], ground.work / "pictures"
    folder.mkdir(exist_ok=True)
    for label, names in (("worst", min(rates, key=rates.__getitem__)), ("best", max(rates, key=rates.__getitem__))):
        case = Case("apart", 0, tuple(sorted(names, key=NAMES.index)))
        with apply_deltas(ground.pipeline, ground.together(case)):
            images = sample(ground.pipeline, [pair_prompt(*names)] * 8, 5, steps=STEPS, guidance=GUIDANCE)
        cells = []
        for number, image in enumerate(images):
            path = folder / f"{label}-{number}.png"
            Image.fromarray(image).save(path)
            cells.append(Cell(path))
        blocks.append(Block(f"{label}, both in {rates[names]:.0%}: {pair_prompt(*names)}", cells))
    write_grid(blocks, target, columns=8, side=96)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--sizes", type=int, nargs="+", default=[9, 5, 3, 2], choices=list(SETS))
    parser.add_argument("--samples", type=int, default=8, help="of each prompt")
    parser.add_argument(
        "--pairs-of", type=int, default=len(NAMES), help="sets of two are of the first so many concepts"
    )
    parser.add_argument("--pictures", type=Path, help="draw the worst and the best pair into this file")
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
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    print(json_text({"benchmark": "merge-table", "samples": arguments.samples, **summary(rows)}))
    if arguments.pictures:
        draw_extremes(ground, rows, arguments.pictures)


if __name__ == "__main__":
    main()
