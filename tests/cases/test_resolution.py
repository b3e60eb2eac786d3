"""Case 07: one rule for the side of pictures, the pipeline's own, asked by everything that draws or trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cdkit.deltas.base_model import checked_resolution
from cdkit.deltas.families.table import family_named
from tests.cli.running import ran
from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def _commands(base: Path, photos: Path, side: int, out: Path) -> dict[str, list[Any]]:
    shared = ["--base", base, "--resolution", side]
    return {
        "sample": ["sample", "--prompt", "a star", "--seeds", 1, "--steps", 2, *shared, "--out", out / "sample"],
        "class-images": ["class-images", "a star", "--count", 2, "--steps", 2, *shared, "--out", out / "images"],
        "train": [
            *("train", "--concept", f"cat={photos}", "--token", "cat=<new1>=cat", "--steps", 1, "--batch-size", 1),
            *("--enlarge", "--sample-every", 1, *shared, "--out", out / "train"),
        ],
    }


@pytest.mark.parametrize("side", [36, 18, 33, 100])
@pytest.mark.parametrize("command", ["sample", "class-images", "train"])
def test_a_side_that_the_pipeline_does_not_take_is_refused_before_anything_is_done(
    base: Path, photos: Path, tmp_path: Path, command: str, side: int
) -> None:
    done = ran(_commands(base, photos, side, tmp_path)[command])
    assert done.code == 2, done.err
    assert f"The resolution {side} is no multiple of 8" in done.err
    assert f"Use {max(1, round(side / 8)) * 8}; 32 is the model's own" in done.err
    assert not list(tmp_path.rglob("*.png"))
    assert not list(tmp_path.rglob("metrics.csv"))


# Also sides whose latents the U-Net cannot halve evenly: 24 and 40 pixels are 12 and 20 cells, 8 are 4.
@pytest.mark.parametrize(
    ("command", "side"),
    [
        *((name, side) for name in ("sample", "class-images") for side in (8, 24, 40, 56)),
        *(("train", side) for side in (16, 24, 40)),
    ],
)
def test_every_side_that_is_taken_works(base: Path, photos: Path, tmp_path: Path, command: str, side: int) -> None:
    done = ran(_commands(base, photos, side, tmp_path)[command])
    assert done.code == 0, done.err
    if command == "sample":
        assert Image.open(next((tmp_path / "sample" / "images").glob("*.png"))).size == (side, side)


@pytest.mark.parametrize("side", [36, 40])
def test_the_embedded_model(photos: Path, tmp_path: Path, side: int) -> None:
    words = ["sample", "--prompt", "a star", "--resolution", side, "--seeds", 1, "--steps", 2, "--out", tmp_path]
    done = ran(words)
    assert done.code == (2 if side == 36 else 0), done.err


def test_the_step_is_the_pipelines_and_the_autoencoders() -> None:
    from cdkit.core.errors import ConfigError

    family = family_named("StableDiffusionPipeline", "a base")

    def checked(asked: int | None, own: int, halvings: int) -> int:
        vae = {"block_out_channels": [128] * (halvings + 1)}
        assert family.factor(vae) == 2**halvings
        return checked_resolution(asked, own, family.step(vae))

    assert checked(None, 512, 3) == 512
    assert checked(520, 512, 3) == 520
    assert checked(24, 32, 1) == 24
    for side, halvings, words in ((36, 2, "multiple of 8"), (520, 4, "multiple of 16"), (12, 5, "multiple of 32")):
        with pytest.raises(ConfigError, match=words):
            checked(side, 512, halvings)
    with pytest.raises(ConfigError, match="multiple of 8"):
        checked(None, 36, 2)
