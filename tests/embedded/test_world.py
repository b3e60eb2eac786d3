"""The world: the same bytes for a seed, held-out concepts never shown, captions that say what they claim."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cdkit.embedded.concepts import CONCEPTS
from cdkit.embedded.grammar import FIELDS, UNSAID, describe, scene_fields
from cdkit.embedded.pretraining.scene_store import scene_pair
from cdkit.embedded.rendering import render
from cdkit.embedded.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COMBINATIONS,
    PATTERNS,
    SHAPES,
    compose,
    generator,
    sample_scene,
    scene_from_seed,
)

PICTURES_OF_64_SEEDS = "9925eb83b7bd3dd123bee2fe4de0b58462d3dfe261e02cc5a959a63d24f72290"
CAPTIONS_OF_64_SEEDS = "108efb5a55dd56cc0f27226e534ed09f9a44e83b322a6c775cff64ec2af2c973"


def test_a_seed_always_gives_the_same_pictures_and_captions() -> None:
    pictures, captions = hashlib.sha256(), hashlib.sha256()
    for seed in range(64):
        rng = generator(seed)
        scene = sample_scene(rng)
        pictures.update(render(scene).tobytes())
        captions.update(describe(scene, rng).text.encode())
    assert pictures.hexdigest() == PICTURES_OF_64_SEEDS
    assert captions.hexdigest() == CAPTIONS_OF_64_SEEDS


def test_pre_training_scenes_hold_no_concept() -> None:
    looks = {thing.look for seed in range(6000) for scene in scene_pair(seed)[0] for thing in scene.things}
    concepts = {concept.look for concept in CONCEPTS}
    assert not looks & concepts
    assert concepts > HELD_OUT_COMBINATIONS
    assert {shape for shape, _, _ in looks} == set(SHAPES)
    assert {pattern for _, pattern, _ in looks} == set(PATTERNS)
    assert {colour for _, _, colours in looks for colour in colours} == set(COLOURS)


def test_two_objects_stand_in_two_fifths_of_the_scenes_without_touching() -> None:
    scenes = [scene_from_seed(seed) for seed in range(2000)]
    pairs = [scene for scene in scenes if len(scene.things) == 2]
    assert 0.40 <= len(pairs) / len(scenes) <= 0.46
    for scene in pairs:
        left, right = scene.things
        assert left.x + left.radius <= right.x - right.radius + 1 / 32


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_no_background_has_a_concept_colour(background: str) -> None:
    from cdkit.embedded.world import PALETTE, Scene

    for phase in range(8):
        pixels = render(Scene(background, (), phase)).astype(int).reshape(-1, 3)
        for concept in CONCEPTS:
            for colour in concept.look[2]:
                assert np.abs(pixels - np.array(PALETTE[colour])).max(axis=1).min() > 60, (concept.name, colour)


def test_captions_are_true_of_their_scene_and_vary() -> None:
    rng = generator(7)
    texts = set()
    for _ in range(300):
        scene = sample_scene(rng)
        caption, truth = describe(scene, rng), scene_fields(scene)
        texts.add(caption.text)
        assert len(caption.fields) == len(truth) == len(FIELDS)
        assert all(said in (UNSAID, true) for said, true in zip(caption.fields, truth, strict=True))
    assert len(texts) > 280


def test_a_pair_names_left_and_right() -> None:
    rng = generator(3)
    red_star, blue_mug = ("star", "plain", ("red",)), ("mug", "plain", ("blue",))
    scene = compose(rng, "sea", [red_star, blue_mug])
    texts = {describe(scene, rng).text for _ in range(400)}
    assert any("a red star on the left and a blue mug on the right" in text for text in texts)
    assert not any("a blue mug and a red star" in text for text in texts)
