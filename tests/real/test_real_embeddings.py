"""Embeddings of real captions, those that cleaning changes most, beside open_clip's own of the same text."""

from __future__ import annotations

import difflib
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from cdkit.core.text import clean_caption
from cdkit.encoders import load_text_encoder
from tests.support import material, tiny_models

pytestmark = pytest.mark.real
MOST_ALTERED = 2000
NAMES = [
    "bl_flickr_commons",
    "cc3m_validation",
    "cmoa_teenie_harris",
    "coco_30k_val2014_captions",
    "coco_val2017_captions",
    "flickr30k_multi30k_en",
    "iiw_long_human_captions",
    "laion_img2dataset_10k",
    "multi30k_fr_cs",
    "tate_artworks",
]


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights under CLIP's real vocabulary: small enough for 20,000 captions at the full context."""
    return tiny_models.open_clip_folder(tmp_path_factory.mktemp("models") / "open_clip")


def alteration(caption: str) -> float:
    """0 where cleaning changes nothing but case, towards 1 the less is left."""
    before, after = caption.lower(), clean_caption(caption)
    if before == after:
        return 0.0
    return 1 - difflib.SequenceMatcher(None, before, after, autojunk=False).ratio()


@torch.inference_mode()
def by_open_clip(folder: Path, captions: list[str]) -> np.ndarray:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(captions)
    rows = [model.encode_text(part) for part in tokens.split(250)]
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_the_most_altered_captions_have_open_clips_embeddings(open_clip_model: Path, name: str) -> None:
    texts = pc.unique(pq.read_table(material.path(f"captions/{name}.parquet"), columns=["TEXT"])["TEXT"])
    ranked = sorted(texts.drop_null().to_pylist(), key=alteration, reverse=True)[:MOST_ALTERED]
    encoder = load_text_encoder(f"open_clip:{open_clip_model}", device="cpu", precision="fp32")
    differences = np.abs(encoder.encode(ranked) - by_open_clip(open_clip_model, ranked))
    print(f"{name}: {len(ranked)} captions, largest difference {differences.max():.1e}")
    assert differences.max() < 1e-5


def test_all_ten_files_are_tried() -> None:
    assert [path.stem for path in material.caption_files()] == NAMES
