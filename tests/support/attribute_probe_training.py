"""Trains the attribute probe: `python -m tests.support.attribute_probe_training --out FILE`.

Renders of every attribute, the held-out concepts' included, one and two objects, disturbed by noise, blur, tint and
the autoencoder's round trip.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cdkit.embedded.concepts import CONCEPTS
from cdkit.embedded.rendering import render
from cdkit.embedded.world import Scene, compose, generator, pick
from tests.support.attribute_probe import (
    ALL_BACKGROUNDS,
    ALL_COLOURS,
    ALL_PATTERNS,
    ALL_SHAPES,
    WEIGHTS,
    AttributeProbe,
    Look,
    read_attributes,
)

CONCEPT_SHARE = 0.15
IGNORED = -1


def random_look(rng: np.random.Generator) -> Look:
    """Any shape with any pattern and colours, or a concept."""
    if rng.random() < CONCEPT_SHARE:
        return CONCEPTS[int(rng.integers(len(CONCEPTS)))].look
    pattern = pick(rng, ALL_PATTERNS) if rng.random() < 0.8 else "plain"
    chosen = sorted(rng.permutation(len(ALL_COLOURS))[: 1 if pattern == "plain" else 2].tolist())
    return pick(rng, ALL_SHAPES), pattern, tuple(ALL_COLOURS[index] for index in chosen)


def probe_scene(rng: np.random.Generator) -> Scene:
    """A scene the probe must read."""
    count = 1 if rng.random() < 0.5 else 2
    return compose(rng, pick(rng, ALL_BACKGROUNDS), [random_look(rng) for _ in range(count)])


def targets(scene: Scene) -> tuple[list[int], list[list[float]]]:
    """Class numbers (count, background, shape and pattern per slot) and colour sets per slot."""
    classes, colours = [len(scene.things) - 1, ALL_BACKGROUNDS.index(scene.background)], []
    for slot in range(2):
        thing = scene.things[slot] if slot < len(scene.things) else None
        classes += [ALL_SHAPES.index(thing.shape), ALL_PATTERNS.index(thing.pattern)] if thing else [IGNORED] * 2
        colours.append([float(thing is not None and colour in thing.colours) for colour in ALL_COLOURS])
    return classes, colours


def disturbed(pixels: torch.Tensor, autoencoder: Any, noise: torch.Generator) -> torch.Tensor:
    """What samples suffer from: the autoencoder's round trip with latent noise, blur, tint and grain."""
    count = len(pixels)
    if autoencoder is not None:
        half = count // 2
        with torch.no_grad():
            mean = autoencoder.encode(pixels[:half]).latent_dist.mean
            strength = torch.rand(half, 1, 1, 1, generator=noise) * 0.25
            decoded = autoencoder.decode(mean + strength * torch.randn(mean.shape, generator=noise)).sample
        pixels = torch.cat([decoded.clamp(-1, 1), pixels[half:]])
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, torch.rand(count, 1, 1, 1, generator=noise) * 0.9)
    tint = torch.randn(count, 3, 1, 1, generator=noise) * 0.05
    grain = torch.randn(pixels.shape, generator=noise) * torch.rand(count, 1, 1, 1, generator=noise) * 0.15
    return (pixels + tint + grain).clamp(-1, 1)


def probe_loss(
    probe: AttributeProbe, pixels: torch.Tensor, classes: torch.Tensor, colours: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the classes, binary cross-entropy of the colours of objects that are there."""
    count, background, *slots = probe(pixels)
    loss = F.cross_entropy(count, classes[:, 0]) + F.cross_entropy(background, classes[:, 1])
    for slot in range(2):
        shape, pattern, colour = slots[3 * slot : 3 * slot + 3]
        there = classes[:, 2 + 2 * slot] != IGNORED
        loss = loss + F.cross_entropy(shape[there], classes[there, 2 + 2 * slot])
        loss = loss + F.cross_entropy(pattern[there], classes[there, 3 + 2 * slot])
        loss = loss + 3 * F.binary_cross_entropy_with_logits(colour[there], colours[there, slot])
    return loss


def held_out_accuracy(probe: AttributeProbe, count: int = 1000, seed: int = 900_000) -> dict[str, float]:
    """Share of renders read right, attribute by attribute."""
    scenes = [probe_scene(generator(seed + index)) for index in range(count)]
    right: dict[str, list[bool]] = {name: [] for name in ("count", "background", "shape", "pattern", "colours", "all")}
    for scene, reading in zip(scenes, read_attributes([render(scene) for scene in scenes], probe), strict=True):
        looks = tuple(thing.look for thing in scene.things)
        right["background"].append(scene.background == reading.background)
        right["count"].append(len(looks) == len(reading.looks))
        for look, seen in zip(looks, reading.looks, strict=False):
            for name, part in (("shape", 0), ("pattern", 1), ("colours", 2)):
                right[name].append(look[part] == seen[part])
        right["all"].append(looks == reading.looks and scene.background == reading.background)
    return {name: float(np.mean(hits)) for name, hits in right.items()}


def train(steps: int, renders: int, autoencoder: Any, seed: int = 5) -> AttributeProbe:
    """A probe trained from scratch."""
    scenes = [probe_scene(generator(500_000_000 + index)) for index in range(renders)]
    pictures = np.stack([render(scene) for scene in scenes])
    labels = [targets(scene) for scene in scenes]
    classes = torch.tensor([label[0] for label in labels])
    colours = torch.tensor([label[1] for label in labels])
    torch.manual_seed(seed)
    probe, noise = AttributeProbe(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(renders, (64,), generator=noise)
        pixels = torch.from_numpy(pictures[rows.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = probe_loss(probe, disturbed(pixels, autoencoder, noise), classes[rows], colours[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(step + 1, round(float(loss), 4), held_out_accuracy(probe.eval(), 300), flush=True)
            probe.train()
    return probe.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--renders", type=int, default=24_000)
    parser.add_argument("--no-autoencoder", action="store_true")
    chosen = parser.parse_args()
    autoencoder = None
    if not chosen.no_autoencoder:
        from cdkit.embedded import load_pipeline

        autoencoder = load_pipeline().vae
    probe = train(chosen.steps, chosen.renders, autoencoder)
    print(held_out_accuracy(probe), flush=True)
    temporary = chosen.out.with_suffix(".tmp")
    save_file({name: tensor.half().contiguous() for name, tensor in probe.state_dict().items()}, temporary)
    temporary.replace(chosen.out)


if __name__ == "__main__":
    main()
