"""Batches: the order of all samples of a run, and the latents, noise, masks and prompts of those of a step.

Each sample is made from its own random numbers, so that a run can go on from any step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch

from cdkit.training.augmentation import Placement, draw_placement, place, valid_region, with_words
from cdkit.training.latents import Moments, PictureEncoder, Pictures
from cdkit.training.processes import send

# Photos that are placed anew are encoded together for several steps: so many for each sample of a batch, and pictures
# of so many pixels in all.
AHEAD, AHEAD_PIXELS = 2, 8 * 512**2


@dataclass(frozen=True)
class Choice:
    """What one sample shows: the concept's number, whether a regularization image, and which picture."""

    concept: int
    is_regularization: bool
    item: int


@dataclass(frozen=True)
class Order:
    """The sequence of all samples of a run. photos, images: how many each concept has; images may be 0."""

    photos: Sequence[int]
    images: Sequence[int]
    seed: int

    def choice(self, position: int) -> Choice:
        """The sample at a place of the whole run.

        Targets and regularization images alternate where there are any; concepts take turns whatever their counts;
        a concept's pictures come in a new random order each time all have been seen.
        """
        with_images = [number for number, count in enumerate(self.images) if count]
        is_regularization = bool(with_images) and position % 2 == 1
        turn = position // 2 if with_images else position
        concepts = with_images if is_regularization else range(len(self.photos))
        concept = concepts[turn % len(concepts)]
        count = (self.images if is_regularization else self.photos)[concept]
        epoch, place = divmod(turn // len(concepts), count)
        order = _shuffled(self.seed, is_regularization, concept, epoch, count)
        return Choice(concept, is_regularization, order[place])


@lru_cache(maxsize=64)
def _shuffled(seed: int, is_regularization: bool, concept: int, epoch: int, count: int) -> tuple[int, ...]:
    rng = np.random.default_rng([seed, 1, int(is_regularization), concept, epoch])
    return tuple(int(index) for index in rng.permutation(count))


def sample_generator(seed: int, step: int, sample: int) -> np.random.Generator:
    """The generator of everything random about one sample."""
    return np.random.default_rng([seed, 2, step, sample])


def encoded_together(samples: int, resolution: int, *, with_prior: bool) -> int:
    """How many photos placed anew are encoded at once, for batches of so many samples: those of whole steps."""
    most = (samples + 1) // 2 if with_prior else samples
    return most * max(1, min(samples * AHEAD, AHEAD_PIXELS // resolution**2) // most)


@dataclass(frozen=True)
class Batch:
    """One batch on the device. latents and noise (n, C, h, w), mask (n, 1, h, w), timesteps and weights (n,).

    sizes (n, 6), for SDXL: height and width of the picture, top and left of its crop, height and width trained at.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor
    is_regularization: torch.Tensor
    sizes: torch.Tensor
    prompts: list[str]


@dataclass(frozen=True)
class _Sample:
    pictures: Pictures
    item: int
    is_regularization: bool
    timestep: int
    noise: np.ndarray
    spread: np.ndarray
    placement: Placement
    sizes: tuple[int, ...]


@dataclass
class Batches:
    """Makes the batches of a run of `steps`. samples_per_step: of all processes and accumulation steps together."""

    targets: Sequence[Pictures]
    regularization: Sequence[Pictures | None]
    encoder: PictureEncoder
    resolution: int
    timesteps: int
    samples_per_step: int
    seed: int
    steps: int
    flip: bool = False
    prior_weight: float = 1.0
    _order: Order = field(init=False)
    # By the first sample of a batch: the steps whose photos were encoded last, and their moments.
    _ahead: dict[int, tuple[range, Moments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = [0 if entry is None else len(entry.captions) for entry in self.regularization]
        self._order = Order([len(entry.captions) for entry in self.targets], images, self.seed)

    @property
    def cells(self) -> int:
        """Latent cells per side."""
        return self.resolution // self.encoder.factor

    def make(self, step: int, samples: range) -> Batch:
        """The batch of the samples with these numbers (from 0) of a step."""
        drawn = [self._draw(step, sample) for sample in samples]
        kinds = torch.tensor([entry.is_regularization for entry in drawn])
        masks = [valid_region(entry.placement, self.resolution, self.cells) for entry in drawn]
        return Batch(
            latents=self._latents(step, samples, drawn),
            noise=self._on_device(_stacked([entry.noise for entry in drawn])),
            mask=self._on_device(torch.stack(masks)),
            timesteps=self._on_device(torch.tensor([entry.timestep for entry in drawn])),
            weights=self._on_device(torch.where(kinds, self.prior_weight, 1.0)),
            is_regularization=self._on_device(kinds),
            sizes=self._on_device(torch.tensor([entry.sizes for entry in drawn])),
            prompts=[with_words(entry.placement.words, entry.pictures.captions[entry.item]) for entry in drawn],
        )

    def names(self, step: int) -> list[str]:
        """The files that a step shows, of all processes."""
        first = step * self.samples_per_step
        shown = [self._order.choice(position) for position in range(first, first + self.samples_per_step)]
        pictures = [(self.regularization if c.is_regularization else self.targets)[c.concept] for c in shown]
        of = [entry.names[c.item] for c, entry in zip(shown, pictures, strict=True) if entry and entry.names]
        return list(dict.fromkeys(of))

    def _draw(self, step: int, sample: int) -> _Sample:
        choice = self._order.choice(step * self.samples_per_step + sample)
        rng = sample_generator(self.seed, step, sample)
        shape = (self.encoder.channels, self.cells, self.cells)
        timestep = int(rng.integers(self.timesteps))
        noise, spread = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        flipped = self.flip and bool(rng.random() < 0.5)
        placement = Placement(self.resolution, 0, 0, flipped=flipped)
        trained_at = (self.resolution, self.resolution)
        if choice.is_regularization:
            pictures = self.regularization[choice.concept]
            assert pictures is not None, "only concepts with regularization images are chosen for them"
            sizes = (*pictures.frames[choice.item], *trained_at)
        else:
            pictures = self.targets[choice.concept]
            # What sampling asks for by default: an uncropped picture of the size trained at.
            sizes = (*trained_at, 0, 0, *trained_at)
            if pictures.moments is None:
                placement = replace(draw_placement(rng, self.resolution), flipped=flipped)
        return _Sample(pictures, choice.item, choice.is_regularization, timestep, noise, spread, placement, sizes)

    def _latents(self, step: int, samples: range, drawn: Sequence[_Sample]) -> torch.Tensor:
        """Latents (n, C, h, w): moments, kept ones or those of freshly placed photos, sampled."""
        spread = self._on_device(_stacked([entry.spread for entry in drawn]))
        fresh = [index for index, entry in enumerate(drawn) if entry.pictures.moments is None]
        latents: dict[int, torch.Tensor] = {}
        if fresh:
            moments, begin = self._fresh_moments(step, samples)
            latents = {index: moments.sample(begin + number, spread[index]) for number, index in enumerate(fresh)}
        for index, entry in enumerate(drawn):
            if entry.pictures.moments is not None:
                number = 2 * entry.item + int(entry.placement.flipped) if self.flip else entry.item
                latents[index] = entry.pictures.moments.sample(number, spread[index])
        return torch.stack([latents[index] for index in range(len(drawn))])

    def _fresh_moments(self, step: int, samples: range) -> tuple[Moments, int]:
        """Moments of the placed photos of a block of steps, and where those of this step begin.

        Photos of several steps are encoded together, each placed anew. Where a block begins follows from the step
        alone, so that a run that goes on encodes the same photos together, and gets the same bits.
        """
        with_prior = any(entry is not None for entry in self.regularization)
        most = (len(samples) + 1) // 2 if with_prior else len(samples)
        together = encoded_together(len(samples), self.resolution, with_prior=with_prior) // most
        before = step % together
        steps = range(step - before, min(step - before + together, max(self.steps, step + 1)))
        if samples.start not in self._ahead or self._ahead[samples.start][0] != steps:
            entries = [self._draw(each, sample) for each in steps for sample in samples]
            placed = [self._placed(entry) for entry in entries if entry.pictures.moments is None]
            self._ahead[samples.start] = steps, self.encoder.encode(torch.stack(placed))
        positions = (each * self.samples_per_step + sample for each in steps[:before] for sample in samples)
        begin = sum(not self._order.choice(position).is_regularization for position in positions)
        return self._ahead[samples.start][1], begin

    def _placed(self, entry: _Sample) -> torch.Tensor:
        return place(self._on_device(entry.pictures.squares[entry.item]), entry.placement, self.resolution)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return send(tensor, self.encoder.device)


def _stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))
