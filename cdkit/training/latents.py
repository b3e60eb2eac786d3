"""Latents of pictures: encoded once as mean and deviation where they never change, sampled afresh at each use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from cdkit.core.protocols import Task
from cdkit.deltas.families.family import Family
from cdkit.pictures.picture import Picture
from cdkit.training.augmentation import Placement, place
from cdkit.training.photos import Frame, Square, centre_square
from cdkit.training.plan import PlannedConcept
from cdkit.training.processes import send

ENCODED_AT_ONCE, DECODED_AT_ONCE = 8, 32
# Children of an autoencoder that only decode: they stay off the device.
DECODING = ("decoder", "post_quant_conv")


@dataclass(frozen=True)
class Moments:
    """Scaled posterior mean and deviation, float32 (n, C, h, w) each."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, number: int, spread: torch.Tensor) -> torch.Tensor:
        """Latents (C, h, w) of one picture with standard normal values `spread` (C, h, w)."""
        return self.mean[number] + self.deviation[number] * spread


@dataclass(frozen=True)
class Pictures:
    """Photos or regularization images of one concept, with the forms that each one's caption takes.

    frames: per picture height, width, top and left of its square. moments: of each picture (and its mirror after it
    where pictures are flipped); None: `squares`, uint8 (3, s, s) each, are augmented and encoded at every use. names:
    of the files, for messages. class_captions: the captions without the concept's own word.
    """

    captions: Sequence[Sequence[str]]
    frames: Sequence[Frame]
    moments: Moments | None = None
    squares: Sequence[torch.Tensor] = ()
    names: Sequence[str] = ()
    class_captions: Sequence[Sequence[str]] = ()


class PictureEncoder:
    """A base model's autoencoder on a device, frozen."""

    def __init__(self, vae: Any, family: Family, *, device: torch.device, dtype: torch.dtype) -> None:
        self.family = family
        # fp16 overflows in many autoencoders, which is what their force_upcast says; bf16 does not.
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        self.device = device
        self.vae = vae.requires_grad_(False).eval()
        self.restore()

    @property
    def factor(self) -> int:
        """Pixels per latent cell."""
        return self.family.factor(self.vae.config)

    @property
    def channels(self) -> int:
        return self.family.latent_channels(self.vae.config)

    def restore(self) -> None:
        """Put what of the autoencoder encodes on the device."""
        for name, part in self.vae.named_children():
            part.to(device="cpu" if name in DECODING else self.device, dtype=self.dtype)

    def release(self) -> None:
        """Take it off the device: nothing is encoded any more."""
        self.vae.to("cpu")

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> Moments:
        """Pictures (n, 3, s, s) in [-1, 1] to moments on the device."""
        return Moments(*self.family.moments(self.vae, pixels.to(self.device, self.dtype)))

    def encode_all(self, pictures: Iterable[torch.Tensor], *, flips: bool) -> Moments:
        """Moments of many pictures (3, s, s), uint8 or in [-1, 1], a few at once; with `flips` each and its mirror."""
        parts: list[Moments] = []
        waiting: list[torch.Tensor] = []
        for picture in pictures:
            waiting += [picture, picture.flip(-1)] if flips else [picture]
            if len(waiting) >= ENCODED_AT_ONCE:
                parts.append(self._encode_some(waiting))
                waiting = []
        if waiting:
            parts.append(self._encode_some(waiting))
        return Moments(torch.cat([part.mean for part in parts]), torch.cat([part.deviation for part in parts]))

    def _encode_some(self, pictures: Sequence[torch.Tensor]) -> Moments:
        stacked = send(torch.stack(list(pictures)), self.device)
        return self.encode(stacked.float().div(127.5).sub(1) if stacked.dtype == torch.uint8 else stacked)

    def photos(self, planned: PlannedConcept, resolution: int, *, augmented: bool, flips: bool) -> Pictures:
        """A concept's photos; with `augmented` they are encoded at each use, not now."""
        frames = [square.frame for square in planned.squares]
        if augmented:
            squares = [square.pixels.to(self.device) for square in planned.squares]
            return Pictures(planned.captions, frames, None, squares, planned.names, planned.class_captions)
        pixels = (place(square.pixels, Placement(resolution, 0, 0), resolution) for square in planned.squares)
        moments = self.encode_all(pixels, flips=flips)
        return Pictures(planned.captions, frames, moments, (), planned.names, planned.class_captions)

    def regularization(self, planned: PlannedConcept, resolution: int, *, flips: bool, task: Task) -> Pictures | None:
        """A concept's regularization images, None where it has none."""
        if not planned.regularization:
            return None
        frames: list[Frame] = []
        pixels = _decoded(planned.regularization, resolution, frames, task)
        moments = self.encode_all(pixels, flips=flips)
        names = [picture.name for picture in planned.regularization]
        captions = [[caption] for caption in planned.regularization_captions]
        return Pictures(captions, frames, moments, names=names)


def _decoded(pictures: Sequence[Picture], resolution: int, frames: list[Frame], task: Task) -> Iterator[torch.Tensor]:
    """The pictures' squares one by one, decoded in threads, never all at once; their frames are added to `frames`."""

    def decode(picture: Picture) -> Square:
        return centre_square(picture.open(), resolution, least=resolution)

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for start in range(0, len(pictures), DECODED_AT_ONCE):
            for square in threads.map(decode, pictures[start : start + DECODED_AT_ONCE]):
                frames.append(square.frame)
                yield square.pixels
                task.advance()
