"""What training did to the embedded model: how often a concept shows, and how far everything else moved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.encoders.image_towers import load_image_encoder
from cdkit.execute import Result, execute
from cdkit.stages import STAGES
from tests.support.attribute_probe import concept_fires
from tests.support.samples import read_samples


def stage(name: str, out: Path, **values: Any) -> Result:
    """Run a stage, or find it done."""
    print(f"{name}: {out.name}", flush=True)
    return execute(name, parse_config(STAGES[name].config_class(), values), out)


def pictures(folder: Path) -> list[Image.Image]:
    """The samples' images in order."""
    return [image.convert("RGB") for _, image in read_samples(folder)]


def image_features(images: Sequence[Image.Image]) -> np.ndarray:
    """Normalised features of the embedded CLIP, (n, width)."""
    return load_image_encoder("embedded", device="cpu").encode_images(images)


def drift(images: Sequence[Image.Image], of_base: Sequence[Image.Image]) -> float:
    """Mean 1 − cosine between samples of the same seed."""
    return float(1 - (image_features(images) * image_features(of_base)).sum(axis=1).mean())


def share(images: Sequence[Image.Image], *names: str) -> float:
    """The part of the images in which the probe sees every one of the concepts."""
    seen = np.array([concept_fires(images, name) for name in names])
    return round(float(seen.all(axis=0).mean()), 3)
