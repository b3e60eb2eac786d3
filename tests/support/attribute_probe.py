"""A small classifier of the embedded world's pictures: which one or two objects stand there, and before what.

Quality tests measure with it. It knows the held-out concepts' looks, which the models under test do not.
`python -m tests.support.attribute_probe_training` makes its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from cdkit.embedded.concepts import concept
from cdkit.embedded.world import (
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    PATTERNS,
    SHAPES,
)

WEIGHTS = Path(__file__).with_suffix(".safetensors")
# The world's own, then what only held-out concepts and their photos show.
ALL_SHAPES = (*SHAPES, "crescent")
ALL_PATTERNS = (*PATTERNS, "dotted", "framed", "split")
ALL_COLOURS = (*COLOURS, "pink")
ALL_BACKGROUNDS = (*BACKGROUNDS, "wood")
Look = tuple[str, str, tuple[str, ...]]


@dataclass(frozen=True)
class Reading:
    """What the probe sees: a background and one look per object, left to right; colours in the world's order."""

    background: str
    looks: tuple[Look, ...]


class AttributeProbe(nn.Module):
    """Pictures (n, 3, 32, 32) in [-1, 1] to logits of count, background, and per slot shape, pattern and colours."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.ReLU(),
            )

        self.trunk = nn.Sequential(
            block(3, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width, 1),
            block(2 * width, 3 * width, 2),
            block(3 * width, 3 * width, 1),
            block(3 * width, 4 * width, 2),
        )
        self.mix = nn.Sequential(nn.Linear(4 * width * 16, 256), nn.ReLU())
        self.sizes = (2, len(ALL_BACKGROUNDS), *(2 * [len(ALL_SHAPES), len(ALL_PATTERNS), len(ALL_COLOURS)]))
        self.read = nn.Linear(256, sum(self.sizes))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits: count, background; left shape, pattern, colours; right shape, pattern, colours."""
        logits: torch.Tensor = self.read(self.mix(self.trunk(pixels).flatten(1)))
        return tuple(torch.split(logits, list(self.sizes), dim=1))


def to_pixels(images: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """Images of any size to (n, 3, 32, 32) in [-1, 1], shrunk by averaging."""
    rows = []
    for image in images:
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        small = picture.convert("RGB")
        if small.size != (IMAGE_SIZE, IMAGE_SIZE):
            small = small.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX)
        rows.append(np.asarray(small))
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1


@lru_cache(maxsize=1)
def load_probe() -> AttributeProbe:
    """The trained probe."""
    from safetensors.torch import load_file

    probe = AttributeProbe()
    probe.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()})
    return probe.eval()


@torch.no_grad()
def read_attributes(images: Sequence[Image.Image | np.ndarray], probe: AttributeProbe | None = None) -> list[Reading]:
    """What each image shows."""
    count, background, *slots = (probe or load_probe())(to_pixels(images))
    readings = []
    for row in range(len(count)):
        looks = []
        for slot in range(int(count[row].argmax()) + 1):
            shape, pattern, colours = (part[row] for part in slots[3 * slot : 3 * slot + 3])
            looks.append(read_look(shape, pattern, colours))
        readings.append(Reading(ALL_BACKGROUNDS[int(background[row].argmax())], tuple(looks)))
    return readings


def read_look(shape: torch.Tensor, pattern: torch.Tensor, colours: torch.Tensor) -> Look:
    """The most likely look: one colour for a plain object, else the two likeliest."""
    pattern_word = ALL_PATTERNS[int(pattern.argmax())]
    wanted = 1 if pattern_word == "plain" else 2
    chosen = sorted(colours.topk(wanted).indices.tolist())
    return ALL_SHAPES[int(shape.argmax())], pattern_word, tuple(ALL_COLOURS[index] for index in chosen)


def concept_fires(images: Sequence[Image.Image | np.ndarray], name: str) -> list[bool]:
    """Per image: does any object in it have the concept's shape, pattern and colours?"""
    look = concept(name).look
    return [look in reading.looks for reading in read_attributes(images)]
