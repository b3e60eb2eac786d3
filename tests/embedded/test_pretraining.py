"""`pretraining --tiny` trains every phase for a few steps, goes on, and writes weights that load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdkit.embedded import load_clip, load_pipeline, weight_files
from cdkit.embedded.grammar import FIELDS, MOST_OBJECTS, SHAPE_WORDS, describe, scene_fields
from cdkit.embedded.pretraining.__main__ import main
from cdkit.embedded.pretraining.autoencoder import encoded, packaged_autoencoder, standardise
from cdkit.embedded.pretraining.clip import fits
from cdkit.embedded.pretraining.scenes import SceneSource, Vocabulary, make_scenes, token_rows
from cdkit.embedded.pretraining.training import Length, learning_rate, on_device
from cdkit.embedded.world import SHAPES, compose, generator, sample_scene


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    main(["--tiny", "--out", str(folder), "--device", "cpu"])
    return folder


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_phase_trains_and_the_weights_load(tiny: Path) -> None:
    assert [row["part"] for row in lines(tiny) if row.get("step") == 3] == ["clip", "autoencoder", "unet"]
    assert weight_files.weights_hash(tiny / "weights") != weight_files.weights_hash()
    picture = load_pipeline(tiny / "weights")("a red star", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert 0 < load_clip(tiny / "weights").threshold < 1
    assert sum(entry["bytes"] for entry in weight_files.read_record(tiny / "weights")["files"].values()) < 20_000_000


@pytest.mark.slow
def test_finished_phases_are_not_trained_again(tiny: Path) -> None:
    weights = [(tiny / "weights" / name).read_bytes() for name in weight_files.FILES]
    main(["--tiny", "--out", str(tiny), "--device", "cpu"])
    assert [row["part"] for row in lines(tiny) if "step" in row] == ["clip", "autoencoder", "unet"]
    assert [(tiny / "weights" / name).read_bytes() for name in weight_files.FILES] == weights


def test_a_word_is_tokenised_as_in_its_sentence() -> None:
    rng, vocabulary = generator(4), Vocabulary()
    captions = [describe(sample_scene(rng), rng) for _ in range(300)]
    rows = np.stack([vocabulary.row(caption)[0] for caption in captions])
    assert np.array_equal(rows, token_rows([caption.text for caption in captions]))
    assert int((rows != rows.max()).sum(1).max()) < 60


def test_the_end_of_a_name_is_its_last_token() -> None:
    rng, vocabulary = generator(5), Vocabulary()
    last = {vocabulary.ids(word)[0][-1] for words in SHAPE_WORDS.values() for word in words}
    last |= {vocabulary.ids(word)[0][-1] for word in ("object", "thing", "stripes", "checks", "squares", "away", "up")}
    last |= {vocabulary.ids(word)[0][-1] for word in ("in", "distance")}
    for _ in range(200):
        caption = describe(sample_scene(rng), rng)
        row, ends = vocabulary.row(caption)
        assert {int(row[end]) for end in ends[: len(caption.ends), 0]} <= last, caption.text
        assert (ends[:, 1] >= ends[:, 0]).all()
        assert not ends[len(caption.ends) :].any()


def test_processes_make_the_same_scenes() -> None:
    source, alone = SceneSource(600, workers=1), SceneSource(600, workers=0).made()
    assert len(source.first(600)) == len(alone) == 600
    together = source.made()
    assert all(
        np.array_equal(getattr(together, name), getattr(alone, name)) for name in ("pictures", "tokens", "ends")
    )


def test_a_caption_fits_a_scene_for_some_assignment() -> None:
    rng = generator(6)
    star, mug = ("star", "plain", ("red",)), ("mug", "striped", ("blue", "white"))
    scenes = [compose(rng, "sea", looks) for looks in ([star, mug], [mug, star], [star], [mug, mug])]
    truths = torch.tensor([scene_fields(scene) for scene in scenes])
    parts = {"count": 1, "first_shape": SHAPES.index("mug"), "second_shape": SHAPES.index("star")}
    said = torch.full((3, len(FIELDS)), -1)
    for index, (name, _) in enumerate(FIELDS):
        said[:2, index] = parts.get(name, -1)
        said[1, index] = 1 if name == "first_side" else said[1, index]
    assert fits(said, truths).tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]
    assert MOST_OBJECTS == 3


def test_latents_are_standardised() -> None:
    scenes = make_scenes(range(20), Vocabulary())
    model, pictures = packaged_autoencoder(weight_files.FOLDER, "cpu"), on_device(scenes.pictures, "cpu")
    with torch.no_grad():
        before = model.decode(model.encode(pictures[:2].permute(0, 3, 1, 2) / 255.0).latent_dist.mean).sample
    standardise(model, pictures)
    means = encoded(model, pictures)[0].float()
    assert means.mean(dim=(0, 2, 3)).abs().max() < 0.01
    assert (means.std(dim=(0, 2, 3)) - 1).abs().max() < 0.01
    with torch.no_grad():
        after = model.decode(model.encode(pictures[:2].permute(0, 3, 1, 2) / 255.0).latent_dist.mean).sample
    assert (before - after).abs().max() < 1e-3


def test_the_rate_falls_as_the_time_runs_out() -> None:
    timed, counted = Length(seconds=100), Length(steps=10)
    assert [timed.share(999, seconds) for seconds in (0, 50, 200)] == [0.0, 0.5, 1.0]
    assert [counted.share(step, 999) for step in (0, 5, 20)] == [0.0, 0.5, 1.0]
    rates = [learning_rate(share, 1.0) for share in (0, 0.02, 0.3, 0.65, 1.0)]
    assert rates[1] == rates[2] == 1.0
    assert rates[0] < 0.02
    assert 0.3 < rates[3] < 0.7
    assert rates[4] < 0.02
