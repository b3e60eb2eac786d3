"""Token counts of 200,000 real captions: cdkit against transformers' fast CLIP tokenizer (`encode_batch`) on all.

Both sides start from the same list of cleaned captions in memory, use the same tokenizer object and threads, leave out
start and end tokens, do not truncate, and end with the same numpy array of counts. They take turns; CPU seconds stand
beside wall time, for machines that do other work.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cdkit.core.formatting import json_text
from cdkit.core.text import clean_captions
from cdkit.embedded.tokenizer import load_tokenizer
from cdkit.tokens.count import count_tokens
from cdkit.tokens.vocabulary import Tower, tower_of
from tests.support import material

LAION_400M = 400_000_000
BATCH = 10_000


@dataclass
class Clock:
    """Wall and CPU seconds of one side, a figure per round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], np.ndarray]) -> np.ndarray:
        wall, cpu = time.perf_counter(), time.process_time()
        counts = work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return counts


def english_captions(number: int) -> list[str]:
    """`number` rows of the English real files, shuffled, cleaned."""
    rows: list[str] = []
    for path in material.caption_files():
        if "fr_cs" not in path.name:
            rows += [text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text]
    random.Random(0).shuffle(rows)
    return clean_captions(rows[:number])


def count_slowly(captions: list[str], encode: Callable[..., list[Any]], size: int) -> np.ndarray:
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(captions), BATCH):
        encoded = encode(captions[start : start + BATCH], add_special_tokens=False)
        ids = np.concatenate([np.array(one.ids, dtype=np.int64) for one in encoded])
        counts += np.bincount(ids, minlength=size)
    return counts


def compare(captions: list[str], tower: Tower, rounds: int, peers: list[str]) -> dict[str, Clock]:
    """Alternate the sides; every round ends with equal counts or an AssertionError."""
    clocks = {name: Clock() for name in ("ours", *peers)}
    for number in range(rounds):
        ours = clocks["ours"].measure(lambda: count_tokens(captions, tower))
        for peer in peers:
            theirs = clocks[peer].measure(partial(count_slowly, captions, getattr(tower.tokenizer, peer), len(ours)))
            assert np.array_equal(ours, theirs), f"{peer} counts otherwise"
        assert ours.sum() > 0
        taken = {name: f"{clock.wall[-1]:.2f} s, {clock.cpu[-1]:.2f} s of CPU" for name, clock in clocks.items()}
        print(f"round {number + 1}: {taken}", flush=True)
    return clocks


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(slow, fast, strict=True)), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the tokenizers library, for both sides")
    parser.add_argument("--also-fast", action="store_true", help="also compare with encode_batch_fast (no offsets)")
    arguments = parser.parse_args()
    # Read once, at the library's first parallel call.
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if arguments.threads > 1 else "false"

    captions = english_captions(arguments.captions)
    peers = ["encode_batch", *(["encode_batch_fast"] if arguments.also_fast else [])]
    clocks = compare(captions, tower_of("tokenizer", load_tokenizer()), arguments.rounds, peers)
    seconds = statistics.median(clocks["ours"].wall)
    figures: dict[str, Any] = {
        "speedup_vs_fast_tokenizer": ratio(clocks["encode_batch"].wall, clocks["ours"].wall),
        "speedup_cpu_seconds": ratio(clocks["encode_batch"].cpu, clocks["ours"].cpu),
        "captions": len(captions),
        "threads": arguments.threads,
        "captions_per_second": round(len(captions) / seconds),
        "captions_per_cpu_second": round(len(captions) / statistics.median(clocks["ours"].cpu)),
        "laion400m_minutes": round(LAION_400M / len(captions) * seconds / 60, 1),
        "wall_seconds": {name: round(statistics.median(clock.wall), 3) for name, clock in clocks.items()},
        "cpu_seconds": {name: round(statistics.median(clock.cpu), 3) for name, clock in clocks.items()},
        "equal_counts": True,
    }
    if arguments.also_fast:
        figures["speedup_vs_encode_batch_fast"] = ratio(clocks["encode_batch_fast"].wall, clocks["ours"].wall)
    print(json_text(figures))


if __name__ == "__main__":
    main()
