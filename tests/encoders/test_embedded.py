"""The embedded towers without transformers give the very numbers of the model that load_clip gives."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cdkit import embedded
from cdkit.embedded.models import EmbeddedClip
from cdkit.encoders import load_text_encoder
from cdkit.encoders.image_towers import ImageTower, TowerImageEncoder, clip_picture_tower, load_image_encoder
from cdkit.encoders.text_tower import TowerTextEncoder
from cdkit.encoders.transformers import clip_tower

CAPTIONS = [
    *("", "a photo of a star", "A RED heart &amp; a star", "word " * 100, "<|endoftext|> in the middle"),
    *("e\u0301 not composed", "日本語 🙂", "\u200b", "<|startoftext|>", "it's 12.5 %"),
]


@pytest.fixture(scope="module")
def clip() -> EmbeddedClip:
    return embedded.load_clip()


def test_texts(clip: EmbeddedClip) -> None:
    library = TowerTextEncoder(
        "embedded", clip_tower(clip.model, clip.tokenizer), device="cpu", precision="fp32", threshold=clip.threshold
    )
    ours = load_text_encoder("embedded", device="cpu")
    assert ours.weights_hash() == library.weights_hash(), "indexes stay what they are"
    assert ours.trims
    assert library.trims
    assert ours.default_threshold == clip.threshold
    assert ours.tokenize(CAPTIONS).ids.tolist() == library.tokenize(CAPTIONS).ids.tolist()
    assert (ours.encode(CAPTIONS) == library.encode(CAPTIONS)).all()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_pictures(clip: EmbeddedClip, count: int) -> None:
    random = np.random.default_rng(count)
    shapes = random.integers(20, 90, (count, 2)).tolist()
    images = [Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    tower: ImageTower = clip_picture_tower(clip.model, clip.preprocess, {"library": "embedded"})
    library, ours = TowerImageEncoder("embedded", tower, device="cpu"), load_image_encoder("embedded", device="cpu")
    assert ours.weights_hash() == library.weights_hash()
    assert (ours.encode_images(images) == library.encode_images(images)).all()
