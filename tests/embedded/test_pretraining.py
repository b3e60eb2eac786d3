"""`pretrain --smoke` trains every part for a few steps, resumes, and writes weights that load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cdkit.core.errors import InputError
from cdkit.embedded import load_clip, load_pipeline, weight_files
from cdkit.embedded.pretraining.__main__ import main


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    main(["--smoke", "--work", str(folder / "work"), "--out", str(folder / "weights"), "--device", "cpu"])
    return folder


def test_every_part_trains_and_the_weights_load(smoke: Path) -> None:
    rows = [json.loads(line) for line in (smoke / "work" / "log.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows if row["step"] == 2] == ["clip", "autoencoder", "unet", "decoder", "pictures"]
    pipeline = load_pipeline(smoke / "weights")
    picture = pipeline("a red star", num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)
    assert 0 < load_clip(smoke / "weights").threshold < 1


def test_finished_parts_are_not_trained_again(smoke: Path) -> None:
    log = smoke / "work" / "log.jsonl"
    before = log.read_text()
    main(["--smoke", "--part", "unet", "--work", str(smoke / "work"), "--device", "cpu"])
    assert log.read_text() == before
    main(["--smoke", "--part", "unet", "--steps", "4", "--work", str(smoke / "work"), "--device", "cpu"])
    assert '"step": 4' in log.read_text().splitlines()[-1]


def test_a_part_without_its_forerunner_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"clip\.pt"):
        main(["--smoke", "--part", "unet", "--work", str(tmp_path), "--device", "cpu"])


def test_latents_are_standardised(smoke: Path) -> None:
    import torch

    from cdkit.embedded.pretraining.scene_store import TRAINING_SEED, scene_store, to_unit_range

    store = scene_store(smoke / "work", 40, TRAINING_SEED)
    autoencoder = load_pipeline(smoke / "weights").vae
    with torch.no_grad():
        mean = autoencoder.encode(to_unit_range(store.pictures, "cpu")).latent_dist.mean
    assert mean.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (mean.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05
    assert sum(entry["bytes"] for entry in weight_files.read_record(smoke / "weights")["files"].values()) < 20_000_000
