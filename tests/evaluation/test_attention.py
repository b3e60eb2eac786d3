from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdkit.core.config import parse_config
from cdkit.evaluation.attention import (
    AttentionRecord,
    cross_attention,
    draw_strip,
    grid_of,
    prompt_tokens,
    recorded_attention,
)
from cdkit.evaluation.config import AttentionConfig
from cdkit.execute import execute
from tests.support.pretend_run import run_stage, write_trained


@pytest.mark.parametrize(
    ("positions", "aspect", "grid"), [(64, 1.0, (8, 8)), (96, 1.5, (12, 8)), (96, 2 / 3, (8, 12)), (7, 1.0, (7, 1))]
)
def test_the_grid_has_the_images_shape(positions: int, aspect: float, grid: tuple[int, int]) -> None:
    found = grid_of(positions, aspect)
    assert found == grid or (positions == 7 and sorted(found) == [1, 7])


def test_maps_are_the_mean_over_layers_and_steps() -> None:
    record = AttentionRecord()
    coarse = torch.zeros(4, 2)
    coarse[:, 0] = 1
    fine = torch.full((16, 2), 0.5)
    record.add(coarse)
    record.add(fine)
    record.add(fine)
    maps = record.maps(1.0)
    assert maps.shape == (2, 4, 4)
    assert torch.allclose(maps[0], torch.full((4, 4), 2 / 3))
    assert torch.allclose(maps[1], torch.full((4, 4), 1 / 3))


def test_probabilities_are_what_the_models_attention_uses() -> None:
    """Probabilities times values, through the output layer, are what the layer itself gives."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    layer = Attention(query_dim=16, cross_attention_dim=12, heads=1, dim_head=8).eval()
    hidden, text = torch.randn(1, 9, 16), torch.randn(1, 5, 12)
    probabilities = cross_attention(layer, hidden, text)
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(9), atol=1e-6)
    with torch.no_grad():
        expected = layer.to_out[0](probabilities @ layer.to_v(text)[0])
        assert torch.allclose(layer(hidden, encoder_hidden_states=text)[0], expected, atol=1e-5)


def test_recording_ends_with_the_block() -> None:
    from cdkit.embedded import load_pipeline

    unet = load_pipeline().unet
    sample, text = torch.randn(2, 8, 8, 8), torch.randn(2, 77, 128)
    with torch.no_grad(), recorded_attention(unet) as record:
        unet(sample, 10, encoder_hidden_states=text)
        seen = dict(record.counts)
    with torch.no_grad():
        unet(sample, 10, encoder_hidden_states=text)
    assert seen
    assert record.counts == seen
    for positions, summed in record.sums.items():
        assert summed.shape == (positions, 77)
        assert torch.allclose(summed.sum(dim=1), torch.full((positions,), float(seen[positions])), atol=1e-4)


def test_the_picture_is_the_one_drawn_without_recording(tmp_path: Path) -> None:
    delta = write_trained(tmp_path / "delta")
    prompt = "a photo of a <new1> star"
    values = {"prompt": prompt, "seed": 3, "steps": 3, "device": "cpu", "deltas": [str(delta)]}
    result = execute("attention", parse_config(AttentionConfig, values), tmp_path / "attention")
    shared = {"steps": 3, "guidance": 6.0, "device": "cpu", "deltas": [str(delta)]}
    run_stage("sample", tmp_path / "sample", prompts=[prompt], seeds=1, first_seed=3, **shared)
    plain = np.asarray(Image.open(tmp_path / "sample" / "images" / "0000-3.png"))
    recorded = np.asarray(Image.open(tmp_path / "attention" / "image.png"))
    assert (plain == recorded).all()
    tokens = [entry["token"] for entry in result.manifest.details["tokens"]]
    assert tokens == ["a", "photo", "of", "a", "<new1>", "star"]
    from safetensors.torch import load_file

    maps = load_file(tmp_path / "attention" / "maps.safetensors")
    assert len(maps) == 6
    assert all(0 < float(map_.mean()) < 1 and float(map_.std()) > 0 for map_ in maps.values())
    strip = Image.open(tmp_path / "attention" / "attention.png")
    assert strip.width > 4 * 192


def test_inner_pieces_of_a_word_are_marked() -> None:
    from tests.support.tiny_models import clip_tokenizer

    tokens = prompt_tokens(clip_tokenizer(), "a checkeredmug")
    assert tokens[0] == "a"
    assert len(tokens) > 2
    assert tokens[1].endswith("-")
    assert not tokens[-1].endswith("-")


def test_a_strip_shows_where_the_map_is_bright() -> None:
    map_ = torch.zeros(1, 4, 4)
    map_[0, :2, :2] = 1
    strip = draw_strip(Image.new("RGB", (32, 32), "black"), ["star"], map_)
    tile = np.asarray(strip).astype(int)[8:200, 8 + 192 + 8 : 8 + 192 + 8 + 192].sum(axis=2)
    assert tile[:60, :60].mean() > 2 * tile[130:, 130:].mean()
