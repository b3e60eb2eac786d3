"""Captions of photographs for the text tower, e.g. COCO's (CC BY 4.0): five people's words for one picture."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.embedded.grammar import describe, scene_fields
from cdkit.embedded.rendering import render
from cdkit.embedded.tokenizer import END_ID, load_tokenizer
from cdkit.embedded.world import Scene, contrast_scene, generator, sample_scene

CAPTIONS_PER_PHOTO = 5


def real_caption_tokens(path: Path | None) -> np.ndarray:
    """Tokens of a LAION-layout parquet, grouped by URL, uint16 (photos, 5, 40); empty without a path.

    Raises InputError when the file cannot be read or has no URL and TEXT columns.
    """
    if path is None:
        return np.zeros((0, CAPTIONS_PER_PHOTO, CAPTION_TOKENS), dtype=np.uint16)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["URL", "TEXT"])
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file with URL and TEXT columns: {error}") from error
    photos: dict[str, list[str]] = {}
    for url, text in zip(table["URL"].to_pylist(), table["TEXT"].to_pylist(), strict=True):
        if url and text:
            photos.setdefault(url, []).append(text)
    groups = [texts[:CAPTIONS_PER_PHOTO] for texts in photos.values() if len(texts) >= CAPTIONS_PER_PHOTO]
    tokens = token_rows([text for group in groups for text in group])
    return tokens.reshape(len(groups), CAPTIONS_PER_PHOTO, CAPTION_TOKENS)


CAPTIONS_PER_SCENE = 4
CAPTION_TOKENS = 40
PAIRS_PER_TASK = 500
TRAINING_SEED = 1_000_000_000
HELD_OUT_SEED = 2_000_000_000


@dataclass(frozen=True)
class SceneStore:
    """n scenes: pictures uint8 (n, 32, 32, 3), scene_fields int8 (n, f), and of c captions each tokens uint16
    (n, c, 40) and caption_fields int8 (n, c, f). Scenes 2k and 2k + 1 are a pair.
    """

    pictures: np.ndarray
    scene_fields: np.ndarray
    tokens: np.ndarray
    caption_fields: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self.pictures) // 2

    def pair_rows(self, chosen: np.ndarray) -> np.ndarray:
        """The scene rows of pairs, partner next to partner."""
        return np.stack([2 * chosen, 2 * chosen + 1], axis=1).reshape(-1)


def scene_pair(seed: int) -> tuple[tuple[Scene, Scene], np.random.Generator]:
    """The two scenes of one seed, and the generator that draws their captions next."""
    rng = generator(seed)
    scene = sample_scene(rng)
    return (scene, contrast_scene(scene, rng)), rng


@lru_cache(maxsize=1)
def worker_tokenizer() -> Any:
    """One tokenizer per process."""
    return load_tokenizer()


def token_rows(texts: list[str], length: int = CAPTION_TOKENS) -> np.ndarray:
    """Token ids padded with end-of-text, uint16 (n, length); too long texts keep their end token."""
    rows = np.full((len(texts), length), END_ID, dtype=np.uint16)
    if texts:
        for row, ids in zip(rows, worker_tokenizer()(texts)["input_ids"], strict=True):
            kept = ids[: length - 1]
            row[: len(kept)] = kept
    return rows


def render_pairs(seeds: range) -> dict[str, np.ndarray]:
    """The store's arrays for some pair seeds."""
    pictures, fields, texts, said = [], [], [], []
    for seed in seeds:
        scenes, rng = scene_pair(seed)
        for scene in scenes:
            pictures.append(render(scene))
            fields.append(scene_fields(scene))
            captions = [describe(scene, rng) for _ in range(CAPTIONS_PER_SCENE)]
            texts += [caption.text for caption in captions]
            said += [caption.fields for caption in captions]
    count = len(pictures)
    return {
        "pictures": np.stack(pictures),
        "scene_fields": np.array(fields, dtype=np.int8),
        "tokens": token_rows(texts).reshape(count, CAPTIONS_PER_SCENE, CAPTION_TOKENS),
        "caption_fields": np.array(said, dtype=np.int8).reshape(count, CAPTIONS_PER_SCENE, -1),
    }


def scene_store(work: Path, pairs: int, seed: int = TRAINING_SEED, workers: int = 1) -> SceneStore:
    """The store of `pairs` pairs from `seed` on, rendered or read from the work folder."""
    path = work / f"scenes-{seed}-{pairs}.npz"
    if not path.is_file():
        tasks = [range(seed + at, seed + min(at + PAIRS_PER_TASK, pairs)) for at in range(0, pairs, PAIRS_PER_TASK)]
        if workers > 1:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                parts = list(pool.map(render_pairs, tasks))
        else:
            parts = [render_pairs(task) for task in tasks]
        work.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            arrays: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            np.savez(file, **arrays)
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        return SceneStore(**{name: stored[name] for name in stored.files})


@dataclass
class TrainingLog:
    """Appends JSON lines to a file and hands each to `report` (the entry point prints it)."""

    path: Path
    report: Callable[[str], None] = lambda line: None
    started: float = field(default_factory=time.monotonic)

    def write(self, part: str, step: int, **figures: float) -> None:
        """One line: part, step, seconds since this process began, figures."""
        row = {"part": part, "step": step, "seconds": round(time.monotonic() - self.started, 1)}
        row |= {name: round(float(value), 5) for name, value in figures.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json_text(row) + "\n")
        self.report(json_text(row))


@dataclass(frozen=True)
class Checkpoint:
    """One file of tensors and numbers, replaced atomically; read with weights_only, so it can hold no code."""

    path: Path

    def load(self, device: str = "cpu") -> dict[str, Any] | None:
        """What was saved, or None."""
        if not self.path.is_file():
            return None
        state: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write and rename."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)


def learning_rate(step: int, steps: int, peak: float, *, warmup: int = 50, constant_share: float = 0.3) -> float:
    """A short warm-up, a constant stretch, then a cosine to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = max(0.0, (step / max(1, steps) - constant_share) / (1 - constant_share))
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same rate for every group, times the group's own `scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


def step_generators(seed: int, step: int, device: str) -> tuple[np.random.Generator, torch.Generator]:
    """The randomness of one step depends on seed and step alone, so a resumed run goes on as if never stopped."""
    rng = np.random.Generator(np.random.PCG64([seed, step]))
    return rng, torch.Generator(device=device).manual_seed(seed * 1_000_003 + step)


def to_unit_range(pictures: np.ndarray, device: str) -> torch.Tensor:
    """uint8 (n, 32, 32, 3) to float (n, 3, 32, 32) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
