from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cdkit.evaluation.estimates import kernel_distance, unit_features


def _textbook(x: np.ndarray, y: np.ndarray) -> float:
    """Binkowski et al. 2018, equation 4, pair by pair in float64."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((np.dot(a, b) / len(a) + 1) ** 3)

    own = [kernel(x[i], x[j]) for i, j in itertools.permutations(range(len(x)), 2)]
    theirs = [kernel(y[i], y[j]) for i, j in itertools.permutations(range(len(y)), 2)]
    cross = [kernel(a, b) for a in x for b in y]
    return float(np.mean(own) + np.mean(theirs) - 2 * np.mean(cross))


def _features(n: int, seed: int, shift: float = 0.0, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)) + shift


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 12), (31, 5)])
def test_it_equals_the_textbook_sum_for_unequal_sizes(n: int, m: int) -> None:
    x, y = _features(n, 1), _features(m, 2, 0.4)
    found = kernel_distance(torch.from_numpy(x), torch.from_numpy(y), resamples=100)
    assert found.value == pytest.approx(_textbook(x, y), abs=1e-9)
    assert (found.n, found.reference_n) == (n, m)


def test_many_rows_are_summed_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    from cdkit.evaluation import estimates as module

    x, y = torch.from_numpy(_features(50, 1)), torch.from_numpy(_features(33, 2))
    whole = kernel_distance(x, y, resamples=0).value
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 8)
    assert kernel_distance(x, y, resamples=0).value == pytest.approx(whole, abs=1e-12)


def test_it_equals_torchmetrics_at_the_same_subset_size() -> None:
    image = pytest.importorskip("torchmetrics.image.kid", reason="pip install torchmetrics: the oracle")
    x, y = _features(40, 3), _features(40, 4, 0.2)
    oracle = float(image.poly_mmd(torch.from_numpy(x), torch.from_numpy(y)))
    found = kernel_distance(torch.from_numpy(x), torch.from_numpy(y), resamples=0)
    assert found.value == pytest.approx(oracle, abs=1e-9)


def test_a_set_is_near_its_own_kind_and_far_from_another() -> None:
    x, y, z = (torch.from_numpy(_features(200, seed, shift)) for seed, shift in ((1, 0), (2, 0), (3, 1.0)))
    near, far = kernel_distance(x, y, seed=1), kernel_distance(x, z, seed=1)
    assert near.low is not None
    assert near.high is not None
    assert far.low is not None
    assert near.low < 0 < near.high
    assert far.low > near.high


@pytest.mark.parametrize("images", [1, 5])
def test_the_standard_error_is_the_spread_between_fresh_sets(images: int) -> None:
    """Twelve or sixty prompts with some images each, around a centre of the prompt's own."""
    values, errors = [], []
    for seed in range(30):
        prompts = 60 // images
        centres = np.repeat(_features(prompts, 100 + seed), images, axis=0)
        x = torch.from_numpy(centres + 0.5 * _features(60, 200 + seed))
        y = torch.from_numpy(_features(200, 300 + seed, 0.5))
        blocks = [place // images for place in range(60)]
        found = kernel_distance(x, y, blocks=blocks, resamples=200, seed=seed)
        values.append(found.value)
        errors.append(found.standard_error or 0.0)
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.5)


def test_images_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of each of six images say no more than six images: alone they would look like sixty."""
    x = torch.from_numpy(np.repeat(_features(6, 1), 10, axis=0))
    y = torch.from_numpy(_features(60, 2))
    by_prompt = kernel_distance(x, y, blocks=[place // 10 for place in range(60)], seed=0)
    alone = kernel_distance(x, y, seed=0)
    assert by_prompt.standard_error is not None
    assert alone.standard_error is not None
    assert by_prompt.value == pytest.approx(alone.value, abs=1e-12)
    assert by_prompt.standard_error > 1.5 * alone.standard_error


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    x, y = torch.from_numpy(_features(20, 1)), torch.from_numpy(_features(20, 2))
    assert kernel_distance(x, y, seed=5) == kernel_distance(x, y, seed=5)
    assert kernel_distance(x, y, seed=5).low != kernel_distance(x, y, seed=6).low


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_features_and_single_images_are_refused(broken: float) -> None:
    x = torch.from_numpy(_features(4, 1))
    with pytest.raises(ValueError, match="two images"):
        kernel_distance(x[:1], x)
    bad = x.clone()
    bad[0, 0] = broken
    with pytest.raises(ValueError, match="NaN"):
        kernel_distance(bad, x)


def test_unit_features_make_the_kernel_a_function_of_the_cosine() -> None:
    rows = torch.nn.functional.normalize(torch.from_numpy(_features(3, 1, width=32)), dim=1)
    scaled = unit_features(rows)
    assert torch.allclose(scaled @ scaled.T / 32, rows @ rows.T)
