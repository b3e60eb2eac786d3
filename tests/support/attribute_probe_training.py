"""Trains the attribute probe: `python -m tests.support.attribute_probe_training --out FILE`.

Renders of every attribute, the held-out concepts' included, one and two objects, disturbed by noise, blur and tint.
Nothing that it measures has a part in it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cdkit.core.machine import cpu_count
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
BATCH = 128
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


def labelled_renders(seeds: range) -> tuple[np.ndarray, list[Any]]:
    """Pictures of the seeds' scenes, uint8 (n, 32, 32, 3), and what they show."""
    scenes = [probe_scene(generator(seed)) for seed in seeds]
    return np.stack([render(scene) for scene in scenes]), [targets(scene) for scene in scenes]


def disturbed(pixels: torch.Tensor) -> torch.Tensor:
    """What samples suffer from: blur, tint and grain."""
    count, device = len(pixels), pixels.device
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    pixels = torch.lerp(pixels, blurred, torch.rand(count, 1, 1, 1, device=device) * 0.9)
    tint = torch.randn(count, 3, 1, 1, device=device) * 0.05
    grain = torch.randn_like(pixels) * torch.rand(count, 1, 1, 1, device=device) * 0.15
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


def train(steps: int, renders: int, device: str, seed: int = 5) -> AttributeProbe:
    """A probe trained from scratch on renders that all cores make."""
    first = 500_000_000
    chunks = [range(first + start, first + min(start + 500, renders)) for start in range(0, renders, 500)]
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(labelled_renders, chunks))
    pictures = torch.from_numpy(np.concatenate([part[0] for part in parts])).to(device)
    labels = [label for part in parts for label in part[1]]
    classes = torch.tensor([label[0] for label in labels], device=device)
    colours = torch.tensor([label[1] for label in labels], device=device)
    torch.manual_seed(seed)
    probe = AttributeProbe().to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows = torch.randint(renders, (BATCH,), device=device)
        pixels = pictures[rows].permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = probe_loss(probe, disturbed(pixels), classes[rows], colours[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            print(step + 1, round(float(loss.detach()), 4), flush=True)
    return probe.cpu().eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--renders", type=int, default=60_000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    probe = train(chosen.steps, chosen.renders, chosen.device)
    print(held_out_accuracy(probe), flush=True)
    temporary = chosen.out.with_suffix(".tmp")
    save_file({name: tensor.half().contiguous() for name, tensor in probe.state_dict().items()}, temporary)
    temporary.replace(chosen.out)


if __name__ == "__main__":
    main()
