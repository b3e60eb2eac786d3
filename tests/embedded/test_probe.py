"""The attribute probe reads held-out renders, and its concepts fire on themselves and on nothing else."""

from __future__ import annotations

import pytest

from cdkit.embedded.concepts import CONCEPTS, concept_arrays, concept_names, concept_photos
from cdkit.embedded.rendering import render
from cdkit.embedded.world import BACKGROUNDS, compose, generator, pick, scene_from_seed
from tests.support.attribute_probe import concept_fires, read_attributes
from tests.support.attribute_probe_training import held_out_accuracy


def test_it_reads_renders_it_has_not_seen() -> None:
    from tests.support.attribute_probe import load_probe

    accuracy = held_out_accuracy(load_probe(), count=400)
    assert min(accuracy[name] for name in ("count", "background", "shape", "pattern", "colours")) >= 0.95, accuracy


def test_it_reads_the_pre_training_world() -> None:
    drawn = [scene_from_seed(70_000 + seed) for seed in range(320)]
    scenes = [scene for scene in drawn if len(scene.things) < 3]
    right = [
        tuple(thing.look for thing in scene.things) == reading.looks and scene.background == reading.background
        for scene, reading in zip(scenes, read_attributes([render(scene) for scene in scenes]), strict=True)
    ]
    assert sum(right) / len(right) >= 0.98


@pytest.mark.parametrize("name", concept_names())
def test_a_concept_fires_on_its_photos_at_any_size(name: str) -> None:
    assert concept_fires(concept_arrays(name), name) == [True] * 5
    assert concept_fires(concept_photos(name), name) == [True] * 5


def test_concepts_do_not_fire_on_the_ordinary_world() -> None:
    pictures = [render(scene_from_seed(80_000 + seed)) for seed in range(500)]
    readings = read_attributes(pictures)
    fired = {concept.name: sum(concept.look in reading.looks for reading in readings) for concept in CONCEPTS}
    assert max(fired.values()) <= 5, fired
    assert sum(fired.values()) <= 10, fired


def test_concepts_fire_in_new_places() -> None:
    rng = generator(99)
    for concept in CONCEPTS:
        pictures = [render(compose(rng, pick(rng, BACKGROUNDS), [concept.look])) for _ in range(20)]
        assert sum(concept_fires(pictures, concept.name)) >= 18, concept.name
