from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_pipeline import tiny_pipeline
from tests.training.running import Material


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The material of make_material, made once."""
    return make_material(tmp_path_factory.mktemp("training material"))


def make_material(root: Path) -> Material:
    """Tiny base models, photos of two concepts with different counts, and a folder of regularization images."""
    tiny_pipeline(root / "base")
    tiny_pipeline(root / "velocity", prediction_type="v_prediction")
    for number, (name, count) in enumerate([("cat", 4), ("dog", 3), ("images", 6)]):
        write_photos(root / name, count, seed=number)
    for path in (root / "images").glob("*.png"):
        path.with_suffix(".txt").write_text(f"photo of a cat {path.stem}")
    return Material(root)


def write_photos(folder: Path, count: int, *, seed: int) -> None:
    """Smooth random pictures, 48 × 40."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        small.resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
