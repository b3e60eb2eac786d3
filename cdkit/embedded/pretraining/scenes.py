"""The training set: scenes as pictures, captions as tokens, both as numbers; made by processes while training goes on.

Everything is a function of the seed, so nothing is kept on disk: a run that goes on makes the same scenes again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np

from cdkit.core.machine import cpu_count
from cdkit.embedded.grammar import FIELDS, MOST_OBJECTS, Caption, describe, scene_fields
from cdkit.embedded.rendering import render
from cdkit.embedded.tokenizer import END_ID, START_ID, load_tokenizer
from cdkit.embedded.world import contrast_scene, generator, sample_scene

CAPTIONS_PER_SCENE = 4
CAPTION_TOKENS = 64
PAIRS_PER_TASK = 250
TRAINING_SEED = 1_000_000_000
HELD_OUT_SEED = 2_000_000_000
WORD = re.compile(r"[a-z]+|[^\sa-z]")


@dataclass(frozen=True)
class Scenes:
    """n scenes with c captions each; scenes 2k and 2k + 1 are near misses of each other."""

    # uint8 (n, 32, 32, 3)
    pictures: np.ndarray
    # All that is true of a scene, its objects from left to right: int8 (n, fields)
    truths: np.ndarray
    # uint16 (n, c, 64), padded with end-of-text
    tokens: np.ndarray
    # What a caption says, its objects in the order of mention: int8 (n, c, fields)
    said: np.ndarray
    # Per object mentioned, the token that ends its name and the token that ends what is said of it: uint8 (n, c, 3, 2)
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)


def joined(parts: Sequence[Scenes]) -> Scenes:
    """Parts in order as one set."""
    return Scenes(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Scenes)))


@lru_cache(maxsize=4096)
def word_tokens(word: str) -> tuple[int, ...]:
    """The token ids of a word or a punctuation mark."""
    return tuple(process_tokenizer()(word, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=1)
def process_tokenizer() -> Any:
    """One tokenizer per process."""
    return load_tokenizer()


class Vocabulary:
    """Token ids of the grammar's words. Workers get it filled, so that they need not load a tokenizer."""

    def __init__(self, words: dict[str, tuple[int, ...]] | None = None) -> None:
        self.words = words if words is not None else {}

    @classmethod
    def of_grammar(cls, captions: int = 400) -> Vocabulary:
        """The words of some captions, which are nearly all; others are looked up when they come."""
        vocabulary, rng = cls(), generator(HELD_OUT_SEED - 1)
        for _ in range(captions):
            vocabulary.ids(describe(sample_scene(rng), rng).text)
        return vocabulary

    def ids(self, text: str) -> tuple[list[int], dict[int, int]]:
        """The token ids of a text, which BPE finds word by word; and how many they are at the end of each word."""
        ids: list[int] = []
        counts: dict[int, int] = {}
        for match in WORD.finditer(text):
            word = match[0]
            if word not in self.words:
                self.words[word] = word_tokens(word)
            ids += self.words[word]
            counts[match.end()] = len(ids)
        return ids, counts

    def row(self, caption: Caption) -> tuple[np.ndarray, np.ndarray]:
        """A caption's tokens, uint16 (64,), and where its objects end, uint8 (3, 2); 0 for objects it lacks."""
        row, ends = np.full(CAPTION_TOKENS, END_ID, dtype=np.uint16), np.zeros((MOST_OBJECTS, 2), dtype=np.uint8)
        ids, counts = self.ids(caption.text)
        ids = ids[: CAPTION_TOKENS - 2]
        row[0], row[1 : len(ids) + 1] = START_ID, ids
        for index, pair in enumerate(zip(caption.name_ends, caption.ends, strict=True)):
            ends[index] = [min(counts[end], CAPTION_TOKENS - 2) for end in pair]
        return row, ends


def make_scenes(seeds: range, vocabulary: Vocabulary) -> Scenes:
    """Two scenes for each seed: one drawn from the world, and a near miss of it."""
    pictures, truths, tokens, said, ends = [], [], [], [], []
    for seed in seeds:
        rng = generator(seed)
        scene = sample_scene(rng)
        for shown in (scene, contrast_scene(scene, rng)):
            pictures.append(render(shown))
            truths.append(scene_fields(shown))
            for _ in range(CAPTIONS_PER_SCENE):
                caption = describe(shown, rng)
                row, places = vocabulary.row(caption)
                tokens.append(row)
                ends.append(places)
                said.append(caption.fields)
    shape = (len(pictures), CAPTIONS_PER_SCENE)
    return Scenes(
        np.stack(pictures),
        np.array(truths, dtype=np.int8),
        np.stack(tokens).reshape(*shape, CAPTION_TOKENS),
        np.array(said, dtype=np.int8).reshape(*shape, len(FIELDS)),
        np.stack(ends).reshape(*shape, MOST_OBJECTS, 2),
    )


class SceneSource:
    """Scenes in the making: parts of 500 by processes of their own, or here and now without workers."""

    def __init__(self, scenes: int, workers: int | None = None, seed: int = TRAINING_SEED) -> None:
        starts = range(0, max(1, scenes // 2), PAIRS_PER_TASK)
        tasks = [range(seed + start, seed + min(start + PAIRS_PER_TASK, max(1, scenes // 2))) for start in starts]
        vocabulary = Vocabulary.of_grammar()
        workers = max(0, cpu_count() - 2) if workers is None else workers
        self.pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers else None
        self.parts: list[Future[Scenes]] = []
        for task in tasks:
            if self.pool is not None:
                self.parts.append(self.pool.submit(make_scenes, task, vocabulary))
            else:
                part: Future[Scenes] = Future()
                part.set_result(make_scenes(task, vocabulary))
                self.parts.append(part)

    def first(self, scenes: int) -> Scenes:
        """At least the first so many scenes (all of them if there are fewer), once they are made."""
        count = max(1, -(-scenes // (2 * PAIRS_PER_TASK)))
        return joined([part.result() for part in self.parts[:count]])

    def made(self) -> Scenes:
        """The scenes that are made by now, the first of them in any case; the processes end."""
        done = [self.parts[0], *(part for part in self.parts[1:] if part.done())]
        scenes = joined([part.result() for part in done])
        self.close()
        return scenes

    def close(self) -> None:
        """Ends the processes; what is not begun is not made."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


def token_rows(texts: Sequence[str], length: int = CAPTION_TOKENS) -> np.ndarray:
    """Any texts as token ids padded with end-of-text, uint16 (n, length); too long ones keep their end token."""
    rows = np.full((len(texts), length), END_ID, dtype=np.uint16)
    if texts:
        for row, ids in zip(rows, process_tokenizer()(list(texts))["input_ids"], strict=True):
            row[: min(len(ids), length - 1)] = ids[: length - 1]
    return rows
