"""The world: the same bytes for a seed, held-out concepts never shown, captions that say what they claim."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from cdkit.embedded.concepts import CONCEPTS
from cdkit.embedded.grammar import FIELDS, describe, scene_fields
from cdkit.embedded.rendering import render
from cdkit.embedded.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_COMBINATIONS,
    PATTERNS,
    SHAPES,
    compose,
    contrast_scene,
    generator,
    sample_scene,
    scene_from_seed,
)

PICTURES_OF_64_SEEDS = "94ee94754af7824b9e9a8fce1438146f9a46930e5b62e2d79c739ace79c4c367"
CAPTIONS_OF_64_SEEDS = "6f4c38eac9566ef073cb23201cecadf52b1f9d2082823e595f158f97d78ad4a5"


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
    looks = set()
    for seed in range(5000):
        scene = scene_from_seed(seed)
        for shown in (scene, contrast_scene(scene, generator(seed))):
            looks |= {thing.look for thing in shown.things}
    concepts = {concept.look for concept in CONCEPTS}
    assert not looks & concepts
    assert concepts > HELD_OUT_COMBINATIONS
    assert {shape for shape, _, _ in looks} == set(SHAPES)
    assert {pattern for _, pattern, _ in looks} == set(PATTERNS)
    assert {colour for _, _, colours in looks for colour in colours} == set(COLOURS)


def test_half_of_the_scenes_have_two_objects_and_half_of_these_overlap() -> None:
    scenes = [scene_from_seed(seed) for seed in range(3000)]
    pairs = [scene for scene in scenes if len(scene.things) == 2]
    assert 0.47 <= len(pairs) / len(scenes) <= 0.53
    assert 0.04 <= sum(len(scene.things) == 3 for scene in scenes) / len(scenes) <= 0.08
    overlapping = [scene for scene in pairs if any(thing.nearer for thing in scene.things)]
    assert 0.45 <= len(overlapping) / len(pairs) <= 0.55
    for scene in pairs:
        left, right = scene.things
        assert left.x < right.x
        if scene not in overlapping:
            assert left.x + left.radius <= right.x - right.radius + 1 / 32
    assert {scene.things[0].nearer for scene in overlapping} == {True, False}


def test_the_nearer_object_is_painted_over_the_other() -> None:
    from cdkit.embedded.world import Scene, Thing

    far = Thing("box", "plain", ("red",), 0.4, 0.4, 0.25)
    near = Thing("box", "plain", ("blue",), 0.6, 0.6, 0.25, nearer=True)
    for things in ((far, near), (near, far)):
        assert render(Scene("gray", things))[16, 16].tolist() == [40, 76, 232]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_no_background_has_a_concept_colour(background: str) -> None:
    from cdkit.embedded.world import PALETTE, Scene

    for phase in range(8):
        pixels = render(Scene(background, (), phase)).astype(int).reshape(-1, 3)
        for concept in CONCEPTS:
            for colour in concept.look[2]:
                assert np.abs(pixels - np.array(PALETTE[colour])).max(axis=1).min() > 60, (concept.name, colour)


def test_captions_are_true_of_their_scene_and_vary() -> None:
    import torch

    from cdkit.embedded.pretraining.clip import fits

    rng = generator(7)
    scenes = [sample_scene(rng) for _ in range(300)]
    captions = [describe(scene, rng) for scene in scenes]
    said, truths = (
        torch.tensor(rows)
        for rows in ([caption.fields for caption in captions], [scene_fields(scene) for scene in scenes])
    )
    assert said.shape == truths.shape == (300, len(FIELDS))
    true = fits(said, truths)
    assert true.diagonal().all()
    assert true.float().mean() < 0.1
    assert len({caption.text for caption in captions}) > 280


def test_a_caption_ends_its_names_where_it_says() -> None:
    rng = generator(8)
    for _ in range(300):
        scene = sample_scene(rng)
        caption = describe(scene, rng)
        assert len(caption.name_ends) == len(caption.ends) == len(scene.things)
        assert list(caption.name_ends) == sorted(set(caption.name_ends))
        assert all(name <= end <= len(caption.text) for name, end in zip(caption.name_ends, caption.ends, strict=True))


def test_either_of_two_objects_is_named_first_and_sides_are_told_apart() -> None:
    rng = generator(3)
    red_star, blue_mug = ("star", "plain", ("red",)), ("mug", "plain", ("blue",))
    texts = {describe(compose(rng, "sea", [red_star, blue_mug]), rng).text for _ in range(1500)}

    def told(words: str) -> bool:
        return any(words in text for text in texts)

    assert told("a red star on the left and a blue mug on the right")
    assert told("a blue mug on the right and a red star on the left")
    assert told("a blue mug and a red star")
    assert told("a red star and a blue mug")
    assert told("a red star behind a blue mug")
    assert told("a blue mug behind a red star")
    assert not told("a blue mug on the left")
    assert any(text.startswith("in the ocean") for text in texts)
