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
    """What one sample shows: the concept's number, which picture, and whether it keeps the class as it was.

    is_distilled: the photo of the sample before it once more, with the class prompt, trained towards what the base
    model predicts.
    """

    concept: int
    is_regularization: bool
    item: int
    is_distilled: bool = False


@dataclass(frozen=True)
class Order:
    """The sequence of all samples of a run. photos, images: how many each concept has; images may be 0.

    distils: every sample that keeps the class is distilled; where there are images, every second one.
    """

    photos: Sequence[int]
    images: Sequence[int]
    seed: int
    distils: bool = False

    @property
    def alternates(self) -> bool:
        """Whether every second sample keeps the class as it was."""
        return self.distils or any(self.images)

    def choice(self, position: int) -> Choice:
        """The sample at a place of the whole run.

        Targets and what keeps the class alternate where there is any; concepts take turns whatever their counts; a
        concept's pictures come in a new random order each time all have been seen.
        """
        with_images = [number for number, count in enumerate(self.images) if count]
        is_regularization = self.alternates and position % 2 == 1
        turn = position // 2 if self.alternates else position
        if is_regularization and self.distils:
            if turn % 2 or not with_images:
                return replace(self.choice(position - 1), is_regularization=True, is_distilled=True)
            turn //= 2
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
    distilled: the places of the samples that the base model's own prediction is wanted of. wanted (n, C, h, w): the
    predictions to train towards, where the base model was asked; None: they follow from latents and noise. gated
    (n, positions): where the concepts' words stand, for a method that changes something there alone.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    mask: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor
    is_regularization: torch.Tensor
    sizes: torch.Tensor
    prompts: list[str]
    distilled: tuple[int, ...] = ()
    wanted: torch.Tensor | None = None
    gated: torch.Tensor | None = None


@dataclass(frozen=True)
class _Sample:
    """source: the place in the run of the sample whose random numbers it has."""

    pictures: Pictures
    item: int
    is_regularization: bool
    is_distilled: bool
    source: int
    prompt: str
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
    distils: bool = False
    _order: Order = field(init=False)
    # By the first sample of a batch: the steps whose photos were encoded last, their places in the run, their moments.
    _ahead: dict[int, tuple[range, dict[int, int], Moments]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = [0 if entry is None else len(entry.captions) for entry in self.regularization]
        self._order = Order([len(entry.captions) for entry in self.targets], images, self.seed, self.distils)

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
            prompts=[entry.prompt for entry in drawn],
            distilled=tuple(place for place, entry in enumerate(drawn) if entry.is_distilled),
        )

    def names(self, step: int) -> list[str]:
        """The files that a step shows, of all processes."""
        first = step * self.samples_per_step
        shown = [self._order.choice(position) for position in range(first, first + self.samples_per_step)]
        pictures = [(c, self._pictures(c)) for c in shown]
        return list(dict.fromkeys(entry.names[c.item] for c, entry in pictures if entry.names))

    def _pictures(self, choice: Choice) -> Pictures:
        """The pictures that one is chosen of."""
        if not choice.is_regularization or choice.is_distilled:
            return self.targets[choice.concept]
        images = self.regularization[choice.concept]
        assert images is not None, "only concepts with regularization images are chosen for them"
        return images

    def _draw(self, step: int, sample: int) -> _Sample:
        place_in_run = step * self.samples_per_step + sample
        choice = self._order.choice(place_in_run)
        # What is distilled is the photo before it, with the same noise at the same time and place.
        source = place_in_run - 1 if choice.is_distilled else place_in_run
        rng = sample_generator(self.seed, *divmod(source, self.samples_per_step))
        shape = (self.encoder.channels, self.cells, self.cells)
        timestep = int(rng.integers(self.timesteps))
        noise, spread = (rng.standard_normal(shape, dtype=np.float32) for _ in range(2))
        flipped = self.flip and bool(rng.random() < 0.5)
        placement = Placement(self.resolution, 0, 0, flipped=flipped)
        trained_at = (self.resolution, self.resolution)
        pictures = self._pictures(choice)
        if pictures.moments is None:
            placement = replace(draw_placement(rng, self.resolution), flipped=flipped)
        # Of photos, what sampling asks for by default: an uncropped picture of the size trained at.
        of_photo = not choice.is_regularization or choice.is_distilled
        frame = (*trained_at, 0, 0) if of_photo else pictures.frames[choice.item]
        forms = (pictures.class_captions if choice.is_distilled else pictures.captions)[choice.item]
        # Last, and only where there is something to choose: one form leaves all other random numbers as they are.
        form = forms[int(rng.integers(len(forms)))] if len(forms) > 1 else forms[0]
        return _Sample(
            pictures=pictures,
            item=choice.item,
            is_regularization=choice.is_regularization,
            is_distilled=choice.is_distilled,
            source=source,
            prompt=with_words(placement.words, form),
            timestep=timestep,
            noise=noise,
            spread=spread,
            placement=placement,
            sizes=(*frame, *trained_at),
        )

    def _latents(self, step: int, samples: range, drawn: Sequence[_Sample]) -> torch.Tensor:
        """Latents (n, C, h, w): moments, kept ones or those of freshly placed photos, sampled."""
        spread = self._on_device(_stacked([entry.spread for entry in drawn]))
        fresh = [index for index, entry in enumerate(drawn) if entry.pictures.moments is None]
        latents: dict[int, torch.Tensor] = {}
        if fresh:
            numbers, moments = self._fresh_moments(step, samples)
            latents = {index: moments.sample(numbers[drawn[index].source], spread[index]) for index in fresh}
        for index, entry in enumerate(drawn):
            if entry.pictures.moments is not None:
                number = 2 * entry.item + int(entry.placement.flipped) if self.flip else entry.item
                latents[index] = entry.pictures.moments.sample(number, spread[index])
        return torch.stack([latents[index] for index in range(len(drawn))])

    def _fresh_moments(self, step: int, samples: range) -> tuple[dict[int, int], Moments]:
        """Moments of the placed photos of a block of steps, and their numbers by their places in the run.

        Photos of several steps are encoded together, each placed anew. Where a block begins follows from the step
        alone, so that a run that goes on encodes the same photos together, and gets the same bits.
        """
        with_prior = self._order.alternates
        most = (len(samples) + 1) // 2 if with_prior else len(samples)
        together = encoded_together(len(samples), self.resolution, with_prior=with_prior) // most
        before = step % together
        steps = range(step - before, min(step - before + together, max(self.steps, step + 1)))
        if samples.start not in self._ahead or self._ahead[samples.start][0] != steps:
            entries = [self._draw(each, sample) for each in steps for sample in samples]
            # A photo that is distilled, too, is encoded once.
            placed = {entry.source: entry for entry in entries if entry.pictures.moments is None}
            numbers = {source: number for number, source in enumerate(placed)}
            moments = self.encoder.encode(torch.stack([self._placed(entry) for entry in placed.values()]))
            self._ahead[samples.start] = steps, numbers, moments
        return self._ahead[samples.start][1:]

    def _placed(self, entry: _Sample) -> torch.Tensor:
        return place(self._on_device(entry.pictures.squares[entry.item]), entry.placement, self.resolution)

    def _on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return send(tensor, self.encoder.device)


def _stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))
