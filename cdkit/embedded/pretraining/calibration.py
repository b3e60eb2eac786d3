"""Measures the small CLIP: the similarity threshold of its captions, and attributes named without training for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from cdkit.embedded.grammar import FIELDS, Caption, describe
from cdkit.embedded.pretraining.clip import encode_pictures, pooled
from cdkit.embedded.pretraining.scenes import token_rows
from cdkit.embedded.pretraining.training import on_device, to_unit_range
from cdkit.embedded.rendering import render
from cdkit.embedded.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COMBINATIONS,
    PATTERNS,
    PLAIN_SHARE,
    SHAPES,
    Scene,
    compose,
    generator,
    pick,
    sample_look,
)

CALIBRATION_SEED = 3_000_000_000
SHAPE_FIELD = next(index for index, (name, _) in enumerate(FIELDS) if name == "first_shape")
TextEmbedder = Callable[[list[str]], torch.Tensor]
PictureEmbedder = Callable[[np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class Separation:
    """A threshold, and the shares of pairs on the right side of it."""

    threshold: float
    paraphrases_above: float
    other_shapes_below: float


def caption_saying(scene: Scene, fields: tuple[int, ...], rng: np.random.Generator) -> Caption | None:
    """A caption of the scene that says exactly these fields, or None when the grammar does not come up with one."""
    for _ in range(80):
        caption = describe(scene, rng)
        if caption.fields == fields:
            return caption
    return None


def caption_pairs(count: int, seed: int = CALIBRATION_SEED) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Paraphrases of one scene, and captions that differ in nothing but the shape; one object each."""
    same: list[tuple[str, str]] = []
    other: list[tuple[str, str]] = []
    rng = generator(seed)
    while len(same) < count or len(other) < count:
        look = sample_look(rng, PLAIN_SHARE)
        scene = compose(rng, pick(rng, BACKGROUNDS), [look])
        caption = describe(scene, rng)
        if caption.fields[SHAPE_FIELD] < 0:
            continue
        shape = pick(rng, tuple(shape for shape in SHAPES if shape != look[0]))
        reshaped = dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], shape=shape),))
        fields = list(caption.fields)
        fields[SHAPE_FIELD] = SHAPES.index(shape)
        paraphrase = caption_saying(scene, caption.fields, rng)
        different = caption_saying(reshaped, tuple(fields), rng)
        if paraphrase and paraphrase.text != caption.text:
            same.append((caption.text, paraphrase.text))
        if different:
            other.append((caption.text, different.text))
    return same[:count], other[:count]


def similarities(pairs: list[tuple[str, str]], embed: TextEmbedder) -> np.ndarray:
    """The cosine of each pair."""
    first, second = (embed([pair[side] for pair in pairs]) for side in (0, 1))
    values: np.ndarray = (first * second).sum(1).cpu().numpy()
    return values


def separation(embed: TextEmbedder, count: int = 500) -> Separation:
    """The threshold that parts paraphrases from other shapes best, rounded to a hundredth, and how well it does."""
    same, other = (similarities(pairs, embed) for pairs in caption_pairs(count))
    steps = np.arange(0.3, 0.99, 0.01)
    quality = np.array([min((same >= step).mean(), (other < step).mean()) for step in steps])
    best = steps[quality >= quality.max() - 1e-9]
    threshold = round(float(best[len(best) // 2]), 2)
    return Separation(threshold, float((same >= threshold).mean()), float((other < threshold).mean()))


def naming_accuracy(embed: TextEmbedder, embed_pictures: PictureEmbedder, count: int = 500) -> dict[str, float]:
    """Zero-shot accuracy per attribute on fresh renders of one object.

    The prompts name every look on every background; the best one is right in an attribute or not.
    """
    rng = generator(CALIBRATION_SEED + 1)
    scenes = [compose(rng, pick(rng, BACKGROUNDS), [sample_look(rng, PLAIN_SHARE)]) for _ in range(count)]
    pictures = embed_pictures(np.stack([render(scene) for scene in scenes]))
    looks, texts = prompt_ensemble()
    scores = pictures @ embed(texts).T
    best = scores.argmax(1).tolist()
    truth = [(scene.background, *scene.things[0].look) for scene in scenes]
    names = ("background", "shape", "pattern", "colours")
    return {
        name: float(np.mean([looks[guess][part] == right[part] for guess, right in zip(best, truth, strict=True)]))
        for part, name in enumerate(names)
    }


def prompt_ensemble() -> tuple[list[tuple[Any, ...]], list[str]]:
    """Every (background, shape, pattern, colours) the world shows, and a prompt for each."""
    words = {"gray": "on a gray background", "grass": "on the grass", "sea": "in the sea", "night": "at night"}
    looks, texts = [], []
    pairs = [(first, second) for index, first in enumerate(COLOURS) for second in COLOURS[index + 1 :]]
    for background, shape, pattern in product(BACKGROUNDS, SHAPES, PATTERNS):
        for colours in [(colour,) for colour in COLOURS] if pattern == "plain" else pairs:
            if (shape, pattern, colours) in HELD_OUT_COMBINATIONS:
                continue
            adjective = "" if pattern == "plain" else f"{pattern} "
            looks.append((background, shape, pattern, colours))
            texts.append(f"a photo of a {adjective}{' and '.join(colours)} {shape} {words[background]}")
    return looks, texts


@torch.no_grad()
def clip_figures(clip: Any, device: str) -> dict[str, Any]:
    """The threshold with its separation, and zero-shot accuracy."""

    def embed(texts: list[str]) -> torch.Tensor:
        return pooled(clip, on_device(token_rows(texts), device).long())[2]

    def embed_pictures(pictures: np.ndarray) -> torch.Tensor:
        return encode_pictures(clip, to_unit_range(on_device(pictures, device)))[1]

    parted = dataclasses.asdict(separation(embed))
    named = naming_accuracy(embed, embed_pictures)
    threshold = parted.pop("threshold")
    return {
        "threshold": threshold,
        "threshold_separation": {name: round(value, 4) for name, value in parted.items()},
        "zero_shot": {name: round(value, 4) for name, value in named.items()},
    }
