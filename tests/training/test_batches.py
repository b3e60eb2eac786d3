"""Batches, and the order of a run's samples."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from cdkit.deltas.families.table import family_of
from cdkit.training.batches import Batches, Order, sample_generator
from cdkit.training.latents import Moments, PictureEncoder, Pictures
from tests.support.tiny_pipeline import tiny_pipeline

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PictureEncoder:
    base = tiny_pipeline(tmp_path_factory.mktemp("base"))
    return PictureEncoder(base.vae, family_of(base), device=CPU, dtype=torch.float32)


def _pixels(number: int) -> torch.Tensor:
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(number)) * 2 - 1


def _bytes(number: int) -> torch.Tensor:
    return torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)


def _batches(encoder: PictureEncoder, *, augmented: bool, flip: bool = False, keep: str = "images") -> Batches:
    moments = encoder.encode_all([_bytes(number) for number in range(3)], flips=flip)
    frames = [(48, 40, 4, 0)] * 3
    squares = [torch.full((3, 40, 40), 30 * number, dtype=torch.uint8) for number in range(3)]
    forms, of_class = [["t0"], ["t1"], ["t2"]], [["c0"], ["c1"], ["c2"]]
    targets = Pictures(forms, frames, None if augmented else moments, squares, class_captions=of_class)
    return Batches(
        targets=[targets],
        regularization=[Pictures([["r0"], ["r1"], ["r2"]], frames, moments=moments) if keep != "distil" else None],
        encoder=encoder,
        resolution=32,
        timesteps=1000,
        samples_per_step=8,
        seed=4,
        steps=9,
        flip=flip,
        prior_weight=0.25,
        distils=keep != "images",
    )


def test_moments_are_the_autoencoders_scaled(encoder: PictureEncoder) -> None:
    pixels = torch.stack([_pixels(0), _pixels(1)])
    posterior = encoder.vae.encode(pixels).latent_dist
    scale = encoder.vae.config.scaling_factor
    found = encoder.encode(pixels)
    torch.testing.assert_close(found.mean, posterior.mean * scale)
    torch.testing.assert_close(found.deviation, posterior.std * scale)
    spread = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.sample(1, spread), (posterior.mean + posterior.std * spread)[1] * scale)


def test_mirrors_stand_behind_their_pictures(encoder: PictureEncoder) -> None:
    pictures = [_bytes(number) for number in range(5)]
    both = encoder.encode_all(iter(pictures), flips=True)
    pixels = [picture.float() / 127.5 - 1 for picture in pictures]
    assert len(both.mean) == 10
    torch.testing.assert_close(both.mean[6:7], encoder.encode(pixels[3].unsqueeze(0)).mean)
    torch.testing.assert_close(both.mean[7:8], encoder.encode(pixels[3].flip(-1).unsqueeze(0)).mean)


@pytest.mark.parametrize("keep", ["images", "distil", "both"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_a_batch_is_the_sum_of_its_samples(encoder: PictureEncoder, augmented: bool, flip: bool, keep: str) -> None:
    batches = _batches(encoder, augmented=augmented, flip=flip, keep=keep)
    whole = batches.make(2, range(8))
    for sample in range(8):
        single = batches.make(2, range(sample, sample + 1))
        assert single.prompts == whole.prompts[sample : sample + 1]
        for name in ("latents", "noise", "mask", "timesteps", "weights", "is_regularization", "sizes"):
            torch.testing.assert_close(getattr(single, name)[0], getattr(whole, name)[sample], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("steps", "keep"), [(250, "images"), (9, "images"), (9, "both")])
def test_photos_encoded_for_several_steps_are_those_of_each_step(
    encoder: PictureEncoder, steps: int, keep: str
) -> None:
    """Up to the last step, where a block is shorter, and beyond it."""
    running = replace(_batches(encoder, augmented=True, keep=keep), steps=steps)
    for step in range(steps - 3, steps + 5):
        found = running.make(step, range(8))
        # Made by an object that has encoded nothing yet, as after a restart.
        alone = replace(_batches(encoder, augmented=True, keep=keep), steps=steps).make(step, range(8))
        assert found.latents.equal(alone.latents), step
        assert found.prompts == alone.prompts


def test_what_a_batch_holds(encoder: PictureEncoder) -> None:
    batch = _batches(encoder, augmented=True).make(0, range(8))
    assert batch.latents.shape == batch.noise.shape == (8, 4, 16, 16)
    assert batch.mask.shape == (8, 1, 16, 16)
    assert batch.is_regularization.tolist() == [False, True] * 4
    assert batch.weights.tolist() == [1.0, 0.25] * 4
    assert all(prompt.startswith("r") for prompt in batch.prompts[1::2])
    assert all(prompt[-2:] in ("t0", "t1", "t2") for prompt in batch.prompts[::2])
    assert batch.mask[1::2].min() == 1, "regularization images are never augmented"
    assert batch.sizes[0].tolist() == [32, 32, 0, 0, 32, 32]
    assert batch.sizes[1].tolist() == [48, 40, 4, 0, 32, 32]
    other = _batches(encoder, augmented=True).make(1, range(8))
    assert not batch.noise.allclose(other.noise)
    assert len(set(batch.timesteps.tolist())) > 4


def test_the_same_picture_gets_other_latents_each_time(encoder: PictureEncoder) -> None:
    moments = Moments(torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2))
    assert not moments.sample(0, torch.ones(2, 2, 2)).equal(moments.sample(0, torch.zeros(2, 2, 2)))


def test_concepts_are_sampled_evenly_whatever_their_photo_counts() -> None:
    order = Order(photos=[4, 15, 7], images=[200, 0, 50], seed=3)
    choices = [order.choice(position) for position in range(2 * 420)]
    targets = [choice for choice in choices if not choice.is_regularization]
    images = [choice for choice in choices if choice.is_regularization]
    assert len(targets) == len(images) == 420
    assert Counter(choice.concept for choice in targets) == {0: 140, 1: 140, 2: 140}
    assert Counter(choice.concept for choice in images) == {0: 210, 2: 210}, "the second concept has no images"
    photos = Counter(choice.item for choice in targets if choice.concept == 0)
    assert set(photos.values()) == {35}, "140 samples of 4 photos"


def test_every_picture_is_seen_once_before_any_is_seen_again_and_in_a_new_order() -> None:
    order = Order(photos=[6], images=[0], seed=0)
    items = [order.choice(position).item for position in range(60)]
    epochs = [items[start : start + 6] for start in range(0, 60, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5


def test_without_regularization_every_sample_is_a_target() -> None:
    order = Order(photos=[3, 5], images=[0, 0], seed=0)
    choices = [order.choice(position) for position in range(40)]
    assert not any(choice.is_regularization for choice in choices)
    assert Counter(choice.concept for choice in choices) == {0: 20, 1: 20}


def test_half_of_a_batch_of_eight_is_regularization() -> None:
    order = Order(photos=[5], images=[200], seed=0)
    for step in range(10):
        kinds = [order.choice(8 * step + sample).is_regularization for sample in range(8)]
        assert sum(kinds) == 4


@pytest.mark.parametrize("other", [(1, 2, 4), (1, 3, 3), (2, 2, 3)])
def test_random_numbers_follow_from_seed_step_and_sample(other: tuple[int, int, int]) -> None:
    first, again = (sample_generator(1, 2, 3).standard_normal(5) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, sample_generator(*other).standard_normal(5))


def test_what_is_distilled_is_the_photo_before_it_with_the_class_prompt(encoder: PictureEncoder) -> None:
    for augmented in (True, False):
        batch = _batches(encoder, augmented=augmented, keep="distil").make(3, range(8))
        assert batch.distilled == (1, 3, 5, 7)
        assert batch.is_regularization.tolist() == [False, True] * 4
        assert batch.weights.tolist() == [1.0, 0.25] * 4
        for name in ("latents", "noise", "mask", "timesteps", "sizes"):
            assert getattr(batch, name)[1::2].equal(getattr(batch, name)[::2]), name
        pairs = zip(batch.prompts[::2], batch.prompts[1::2], strict=True)
        assert all(own[:-2] + "c" + own[-1] == of_class for own, of_class in pairs), "with the same words before it"


def test_both_takes_images_and_what_is_distilled_by_turns() -> None:
    order = Order(photos=[3, 4], images=[5, 0], seed=1, distils=True)
    choices = [order.choice(position) for position in range(16)]
    assert [choice.is_distilled for choice in choices[1::2]] == [False, True] * 4
    assert all(choice.concept == 0 for choice in choices[1::2] if not choice.is_distilled), "the one with images"
    for photo, distilled in zip(choices[2::4], choices[3::4], strict=True):
        assert (distilled.concept, distilled.item) == (photo.concept, photo.item)


def test_captions_take_their_forms_by_turns_and_leave_all_else_as_it_is(encoder: PictureEncoder) -> None:
    plain = _batches(encoder, augmented=False, keep="distil")
    forms = replace(plain.targets[0], captions=[["a", "b", "c"]] * 3, class_captions=[["A", "B", "C"]] * 3)
    several = replace(plain, targets=[forms])
    used = Counter()
    for step in range(6):
        batch, before = several.make(step, range(8)), plain.make(step, range(8))
        assert batch.latents.equal(before.latents)
        assert batch.noise.equal(before.noise)
        assert [prompt.upper() for prompt in batch.prompts[::2]] == batch.prompts[1::2]
        used.update(batch.prompts[::2])
    assert set(used) == {"a", "b", "c"}
