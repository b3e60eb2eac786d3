"""Measures a pipeline with the attribute probe: prompts with known answers, seeded samples, the share right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cdkit.embedded.world import BACKGROUNDS, generator, pick, sample_look
from tests.support.attribute_probe import Look, Reading, read_attributes

PLACES = {"gray": "on a gray background", "grass": "on the grass", "sea": "in the sea", "night": "at night"}
GUIDANCE, STEPS = 4.0, 25


@dataclass(frozen=True)
class Question:
    """A prompt and what a right picture shows."""

    prompt: str
    answer: Reading


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


def measure(pipeline: Any, count: int, seed: int, **settings: Any) -> dict[str, dict[str, float]]:
    """The gates' figures on `count` prompts of each sort."""
    singles, pairs = single_questions(count, seed), pair_questions(count, seed)
    mixed = pair_questions(count, seed, plain_share=0.5)
    seen = [
        read_attributes(sample(pipeline, [question.prompt for question in questions], seed, **settings))
        for questions in (singles, pairs, mixed)
    ]
    return {
        "single": single_rates(singles, seen[0]),
        "pair": pair_rates(pairs, seen[1]),
        "patterned_pair": pair_rates(mixed, seen[2]),
    }
