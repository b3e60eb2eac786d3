from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cdkit.evaluation import scoring
from cdkit.evaluation.estimates import mean_with_interval


def _rows(n: int, seed: int = 0, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=1)


def test_text_alignment_is_of_each_image_and_its_own_prompt() -> None:
    images, texts = _rows(3), _rows(3, 1)
    found = scoring.text_alignment(images, texts)
    expected = [
        float(np.dot(i.numpy().astype(float), t.numpy().astype(float))) for i, t in zip(images, texts, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_clip_score_is_scaled_and_never_negative() -> None:
    assert scoring.clip_score(torch.tensor([0.3, -0.2])).tolist() == pytest.approx([0.75, 0.0])


def test_image_alignment_is_the_mean_over_all_pairs() -> None:
    images, photos = _rows(4), _rows(3, 1)
    pairs = [float(i.double() @ p.double()) for i in images for p in photos]
    assert float(scoring.image_alignment(images, photos).mean()) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_photos_that_are_as_before_have_no_drift() -> None:
    photos = _rows(5, 1)
    assert scoring.drift(photos, photos).tolist() == pytest.approx([0.0] * 5, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    found = mean_with_interval(torch.tensor([0.4]), ["a"], resamples=100, seed=0)
    assert (found.low, found.high, found.n) == (None, None, 1)
    assert found.value == pytest.approx(0.4)


def test_prompts_are_what_is_resampled() -> None:
    """Fifty equal images of each of four prompts: the interval is that of four values, not of two hundred."""
    values = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).repeat_interleave(50)
    clustered = mean_with_interval(values, [place // 50 for place in range(200)], resamples=2000, seed=0)
    alone = mean_with_interval(values, list(range(200)), resamples=2000, seed=0)
    assert clustered.low is not None
    assert clustered.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert clustered.high - clustered.low > 4 * (alone.high - alone.low)
    assert clustered.resampled == "prompts"


def test_images_are_resampled_when_all_have_one_prompt() -> None:
    found = mean_with_interval(torch.arange(10.0), ["a"] * 10, resamples=500, seed=0)
    assert found.resampled == "images"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 4.5 < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(200):
        values = torch.randn(40, generator=generator, dtype=torch.float64)
        found = mean_with_interval(values, list(range(40)), resamples=200, seed=seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0 <= found.high
    assert 0.87 <= hits / 200 <= 0.99


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30), st.integers(0, 3))
def test_the_interval_holds_values_between_the_extremes(values: list[float], seed: int) -> None:
    found = mean_with_interval(torch.tensor(values, dtype=torch.float64), values, resamples=100, seed=seed)
    assert found.low is not None
    assert found.high is not None
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
