"""Exact counts of every vocabulary token: words are counted first, and byte-pair merges run on each word once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from cdkit.protocols import Task
from cdkit.tokens.vocabulary import Tower, Vocabulary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_CAPTIONS_AT_ONCE = 500_000
_WORDS_PER_TEXT = 200
_LETTERS = re.compile(r"[^\W\d_]+")


def count_tokens(
    captions: Sequence[str] | pa.Array, tower: Tower, rows: np.ndarray | None = None, task: Task | None = None
) -> np.ndarray:
    """How often every token occurs in `captions` (cleaned), int64 [vocabulary size].

    rows: int64 [n], how many rows each caption stands for (1 when left out). The counts equal those of tokenising
    every row by itself, not truncated; the start and end tokens that a tokenizer adds are not counted. Memory is
    bounded: half a million captions at a time.
    """
    import numpy as np

    total = np.zeros(len(tower.vocabulary), dtype=np.int64)
    for block, weights in _blocks(captions, rows):
        texts, numbers = _word_texts(block, weights) if tower.splits_at_spaces else (block.to_pylist(), weights)
        total += _add_up(texts, numbers, tower)
        if task is not None:
            task.advance(len(block))
    return total


def count_words(
    captions: Sequence[str] | pa.Array, vocabulary: Vocabulary, rows: np.ndarray | None = None
) -> np.ndarray:
    """How often the surface form of every token stands in `captions` as a word of its own, int64 [vocabulary size].

    A word is a run of letters.
    """
    import numpy as np

    total = np.zeros(len(vocabulary), dtype=np.int64)
    holders: dict[str, list[int]] = {}
    for index in range(len(vocabulary)):
        holders.setdefault(vocabulary.text(index) or "", []).append(index)
    for block, weights in _blocks(captions, rows):
        for text, number in zip(*_word_texts(block, weights), strict=True):
            for word in _LETTERS.findall(text):
                if word in holders:
                    total[holders[word]] += number
    return total


def _blocks(captions: Sequence[str] | pa.Array, rows: np.ndarray | None) -> Iterator[tuple[pa.Array, np.ndarray]]:
    import numpy as np
    import pyarrow as pa

    texts = captions if isinstance(captions, pa.Array) else pa.array(captions, pa.large_string())
    weights = np.ones(len(texts), dtype=np.int64) if rows is None else rows
    for start in range(0, len(texts), _CAPTIONS_AT_ONCE):
        yield texts.slice(start, _CAPTIONS_AT_ONCE), weights[start : start + _CAPTIONS_AT_ONCE]


def _word_texts(captions: pa.Array, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Every distinct space-separated word once, as texts of words that occur equally often, with that number."""
    import numpy as np
    import pyarrow.compute as pc

    lists = pc.split_pattern(captions, " ")
    encoded = lists.flatten().dictionary_encode()
    weights = np.repeat(rows, pc.list_value_length(lists).to_numpy())
    # bincount adds in float64, exact up to 2^53 rows.
    counts = np.bincount(encoded.indices.to_numpy(), weights, minlength=len(encoded.dictionary)).astype(np.int64)
    order = np.argsort(counts, kind="stable")
    words, counts = encoded.dictionary.take(order).to_pylist(), counts[order]
    spans = list(_equal_spans(counts))
    return [" ".join(words[start:end]) for start, end in spans], counts[[start for start, _ in spans]]


def _equal_spans(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches of equal counts, cut so that no text grows long."""
    import numpy as np

    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
    for start, end in pairwise(borders):
        for cut in range(start, end, _WORDS_PER_TEXT):
            yield cut, min(cut + _WORDS_PER_TEXT, end)


def _add_up(texts: Sequence[str], weights: np.ndarray, tower: Tower) -> np.ndarray:
    import numpy as np

    size = len(tower.vocabulary)
    total = np.zeros(size, dtype=np.int64)
    for start, encoded in tower.encode_all(texts):
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter((index for one in encoded for index in one), np.int64, int(lengths.sum()))
        repeated = np.repeat(weights[start : start + len(encoded)], lengths)
        total += np.bincount(ids, repeated, minlength=size).astype(np.int64)
    return total
