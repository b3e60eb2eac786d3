"""Measures a pipeline with the attribute probe: prompts with known answers, seeded samples, the share right.

`python -m tests.embedded.quality` prints the figures of docs/results.md as one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.embedded import load_pipeline, weight_files
from cdkit.embedded.world import BACKGROUNDS, SHAPES, generator, pick, sample_look
from tests.support.attribute_probe import Look, Reading, read_attributes

PLACES = {"gray": "on a gray background", "grass": "on the grass", "sea": "in the sea", "night": "at night"}
GUIDANCE, STEPS = 4.0, 25


@dataclass(frozen=True)
class Question:
    """A prompt and what a right picture shows; its objects may change sides unless the prompt is `sided`."""

    prompt: str
    answer: Reading
    sided: bool = True

    def shown_by(self, reading: Reading) -> bool:
        """Whether a picture shows each object with its own attributes, whatever the background."""
        if self.sided:
            return self.answer.looks == reading.looks
        return sorted(self.answer.looks) == sorted(reading.looks)


def words(look: Look) -> str:
    """A look with its article."""
    shape, pattern, colours = look
    phrase = f"{'' if pattern == 'plain' else pattern + ' '}{' and '.join(colours)} {shape}"
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def single_questions(count: int, seed: int) -> list[Question]:
    """One object of any look the world knows, 40 % plain."""
    rng = generator(seed)
    questions = []
    for _ in range(count):
        look, background = sample_look(rng, 0.4), pick(rng, BACKGROUNDS)
        questions.append(Question(f"a photo of {words(look)} {PLACES[background]}", Reading(background, (look,))))
    return questions


def pair_questions(count: int, seed: int, plain_share: float = 1.0) -> list[Question]:
    """Two objects of different shapes and colours, left and right."""
    rng = generator(seed)
    questions: list[Question] = []
    while len(questions) < count:
        left, right = sample_look(rng, plain_share), sample_look(rng, plain_share)
        background = pick(rng, BACKGROUNDS)
        if left[0] == right[0] or set(left[2]) & set(right[2]):
            continue
        prompt = f"{words(left)} on the left and {words(right)} on the right {PLACES[background]}"
        questions.append(Question(prompt, Reading(background, (left, right))))
    return questions


def patterned_questions(each: int, seed: int, *, sided: bool) -> list[Question]:
    """Two patterned objects with four colours, `each` times for every ordered pair of shapes."""
    rng = generator(seed)
    questions = []
    for shapes in permutations(SHAPES, 2):
        chosen: list[Question] = []
        while len(chosen) < each:
            first, second = sample_look(rng, 0.0), sample_look(rng, 0.0)
            background = pick(rng, BACKGROUNDS)
            if (first[0], second[0]) != shapes or set(first[2]) & set(second[2]):
                continue
            left, right = (" on the left", " on the right") if sided else ("", "")
            prompt = f"{words(first)}{left} and {words(second)}{right} {PLACES[background]}"
            chosen.append(Question(prompt, Reading(background, (first, second)), sided))
        questions += chosen
    return questions


@torch.no_grad()
def sample(
    pipeline: Any, prompts: list[str], seed: int, *, guidance: float = GUIDANCE, steps: int = STEPS
) -> list[np.ndarray]:
    """One picture per prompt, uint8 (32, 32, 3), in batches of 64; picture i's noise depends on seed and i alone."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[np.ndarray] = []
    for start in range(0, len(prompts), 64):
        chunk = prompts[start : start + 64]
        noise = [torch.Generator().manual_seed(seed * 100_003 + start + index) for index in range(len(chunk))]
        images = pipeline(chunk, guidance_scale=guidance, num_inference_steps=steps, generator=noise, output_type="np")
        pictures += list((images.images * 255).round().astype(np.uint8))
    return pictures


def single_rates(questions: list[Question], readings: list[Reading]) -> dict[str, float]:
    """Shares of one-object samples right in each attribute of the object, and in all of them with the count."""
    pairs = list(zip(questions, readings, strict=True))
    rates = {"background": [q.answer.background == r.background for q, r in pairs]}
    for part, name in enumerate(("shape", "pattern", "colours")):
        rates[name] = [q.answer.looks[0][part] == r.looks[0][part] for q, r in pairs]
    rates["all"] = [q.answer == r for q, r in pairs]
    return {name: float(np.mean(hits)) for name, hits in rates.items()}


def pair_rates(questions: list[Question], readings: list[Reading]) -> dict[str, float]:
    """Shares of two-object samples: two seen; shapes and colours right on both sides; patterns and background too."""

    def bound(answer: Reading, seen: Reading) -> bool:
        return [(look[0], look[2]) for look in answer.looks] == [(look[0], look[2]) for look in seen.looks]

    pairs = [(question.answer, reading) for question, reading in zip(questions, readings, strict=True)]
    return {
        "count": float(np.mean([len(seen.looks) == 2 for _, seen in pairs])),
        "shapes_and_colours": float(np.mean([bound(answer, seen) for answer, seen in pairs])),
        "all": float(np.mean([answer == seen for answer, seen in pairs])),
    }


def patterned_rates(questions: list[Question], readings: list[Reading]) -> dict[str, Any]:
    """Share of pictures with both objects right: over all ordered pairs of shapes, and the worst of these pairs."""
    right: dict[str, list[bool]] = defaultdict(list)
    for question, reading in zip(questions, readings, strict=True):
        right[" ".join(look[0] for look in question.answer.looks)].append(question.shown_by(reading))
    rates = {shapes: float(np.mean(hits)) for shapes, hits in right.items()}
    worst = min(rates, key=lambda shapes: rates[shapes])
    return {"mean": float(np.mean(list(rates.values()))), "worst": rates[worst], "worst_pair": worst}


def measure(pipeline: Any, count: int, seed: int, **settings: Any) -> dict[str, dict[str, Any]]:
    """The gates' figures on about `count` prompts of each sort."""

    def readings(questions: list[Question]) -> list[Reading]:
        return read_attributes(sample(pipeline, [question.prompt for question in questions], seed, **settings))

    singles, pairs, each = single_questions(count, seed), pair_questions(count, seed), -(-count // 30)
    named, sided = (patterned_questions(each, seed, sided=told) for told in (False, True))
    return {
        "single": single_rates(singles, readings(singles)),
        "plain_pair": pair_rates(pairs, readings(pairs)),
        "patterned_pair": patterned_rates(named, readings(named)),
        "patterned_pair_sided": patterned_rates(sided, readings(sided)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", type=Path, default=weight_files.FOLDER)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a file for the line that is printed")
    chosen = parser.parse_args()
    pipeline = load_pipeline(chosen.weights).to(chosen.device)
    line = json.dumps({seed: measure(pipeline, chosen.count, seed) for seed in chosen.seeds})
    if chosen.out:
        chosen.out.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
