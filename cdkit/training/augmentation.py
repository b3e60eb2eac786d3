"""Augmentation of target photos: seen larger or smaller, with the words that say so and the region that counts.

Kumari et al. 2023, appendix E. Regularization images are never augmented.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

NEAR_WORDS = ("zoomed in", "close up")
FAR_WORDS = ("far away", "very small")
ALL_WORDS = ("", *NEAR_WORDS, *FAR_WORDS)
ZOOM_SHARE = 1 / 3
ZOOM = (1.2, 1.4)
SHRINK = (0.4, 1.0)
FAR_BELOW = 0.6


@dataclass(frozen=True)
class Placement:
    """Where the scaled photo lies on the canvas, in pixels; negative places are cut off. words: before the caption."""

    side: int
    top: int
    left: int
    words: str = ""
    flipped: bool = False


def draw_placement(rng: np.random.Generator, size: int) -> Placement:
    """One third of the time larger (1.2 to 1.4 times), else smaller (0.4 to 1), at a random place.

    The words follow from the side in pixels, as the valid region does, so that the two always agree.
    """
    low, high = ZOOM if rng.random() < ZOOM_SHARE else SHRINK
    side = max(1, round(size * rng.uniform(low, high)))
    room = size - side
    top, left = (int(rng.integers(min(room, 0), max(room, 0) + 1)) for _ in range(2))
    choice = int(rng.integers(2))
    words = NEAR_WORDS[choice] if side > size else FAR_WORDS[choice] if side < FAR_BELOW * size else ""
    return Placement(side, top, left, words)


def place(photo: torch.Tensor, placement: Placement, size: int) -> torch.Tensor:
    """A square photo, uint8 (3, s, s), on a mid-grey canvas: float32 (3, size, size) in [-1, 1]."""
    pixels = photo.float().div(127.5).sub(1).unsqueeze(0)
    side = placement.side
    if photo.shape[-1] != side:
        pixels = functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
    if placement.flipped:
        pixels = pixels.flip(-1)
    canvas = torch.zeros(3, size, size, device=photo.device)
    rows, columns = (slice(max(start, 0), min(start + side, size)) for start in (placement.top, placement.left))
    seen = pixels[0, :, rows.start - placement.top : rows.stop - placement.top]
    canvas[:, rows, columns] = seen[:, :, columns.start - placement.left : columns.stop - placement.left]
    return canvas


def valid_region(placement: Placement, size: int, cells: int) -> torch.Tensor:
    """The latent cells whose error counts: float32 (1, cells, cells) of ones and zeros, never all zero.

    A photo that fills the canvas counts whole. Of a smaller one count the cells it touches less one on each side,
    because the autoencoder mixes grey into those; all it touches when that would leave none.
    """
    mask = torch.zeros(1, cells, cells)
    if placement.side >= size:
        return mask.fill_(1)
    rows, columns = (_inner_cells(start, placement.side, size / cells) for start in (placement.top, placement.left))
    mask[:, rows, columns] = 1
    return mask


def _inner_cells(start: int, side: int, pixels_per_cell: float) -> slice:
    first, last = int(start // pixels_per_cell), int(-(-(start + side) // pixels_per_cell))
    return slice(first + 1, last - 1) if last - first > 2 else slice(first, last)


def with_words(words: str, caption: str) -> str:
    """The caption with the words of its placement before it."""
    return f"{words} {caption}" if words else caption
