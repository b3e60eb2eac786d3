"""The small CLIP: paraphrases above its threshold, other shapes below, attributes named without training for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from cdkit.embedded import default_threshold, load_clip
from cdkit.embedded.models import EmbeddedClip
from cdkit.embedded.pretraining.calibration import naming_accuracy, separation
from cdkit.embedded.world import SHAPES


@pytest.fixture(scope="module")
def clip() -> EmbeddedClip:
    return load_clip()


@pytest.fixture(scope="module")
def embed(clip: EmbeddedClip) -> Callable[[list[str]], torch.Tensor]:
    @torch.no_grad()
    def run(texts: list[str]) -> torch.Tensor:
        ids = clip.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        features = clip.model.get_text_features(input_ids=ids)
        pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1)

    return run


def test_the_threshold_parts_paraphrases_from_other_shapes(embed: Callable[[list[str]], torch.Tensor]) -> None:
    measured = separation(embed, count=150)
    assert abs(measured.threshold - default_threshold()) <= 0.1
    assert measured.paraphrases_above >= 0.97
    assert measured.other_shapes_below >= 0.97


def test_class_names_are_alike_only_with_themselves(embed: Callable[[list[str]], torch.Tensor]) -> None:
    prompts = embed([f"a photo of a {shape}" for shape in SHAPES])
    paraphrases = embed([f"nice {shape} wallpaper" for shape in SHAPES])
    similarity = prompts @ paraphrases.T
    threshold = default_threshold()
    assert similarity.diag().min() >= threshold
    assert (similarity - 2 * torch.eye(len(SHAPES))).max() < threshold


def test_ordinary_captions_keep_their_distance(embed: Callable[[list[str]], torch.Tensor]) -> None:
    texts = embed(
        [
            "a man riding a wave on a surfboard",
            "a surfer rides a big wave in the ocean",
            "a plate of pasta with tomato sauce",
            "a photo of a star",
        ]
    )
    similarity = texts @ texts.T
    assert similarity[0, 1] > max(similarity[0, 2], similarity[0, 3], similarity[1, 2]) + 0.2


@pytest.mark.parametrize("count", [200])
def test_attributes_are_named_zero_shot(
    clip: EmbeddedClip, embed: Callable[[list[str]], torch.Tensor], count: int
) -> None:
    @torch.no_grad()
    def embed_pictures(pictures: np.ndarray) -> torch.Tensor:
        pixels = clip.preprocess([Image.fromarray(picture) for picture in pictures])
        features = clip.model.get_image_features(pixel_values=pixels)
        pooled = features if isinstance(features, torch.Tensor) else features.pooler_output
        return torch.nn.functional.normalize(pooled, dim=-1)

    named = naming_accuracy(embed, embed_pictures, count)
    assert min(named.values()) >= 0.93, named
