"""The training set: scenes rendered once, with their captions tokenised, cached as one file in the work folder.

Scenes come in pairs, a scene and a near miss of it: a batch of pairs makes the text tower learn whose colour is whose.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cdkit.embedded.grammar import describe, scene_fields
from cdkit.embedded.rendering import render
from cdkit.embedded.tokens import END_ID, load_tokenizer
from cdkit.embedded.world import Scene, contrast_scene, generator, sample_scene

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
