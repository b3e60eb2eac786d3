"""Counts of every vocabulary token, exact, and the tables that keep them.

Words are counted first, and byte-pair merges run on each distinct word once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cdkit.core.errors import InputError
from cdkit.core.protocols import Task
from cdkit.core.shards import FACTS_KEY, finished_facts, part_name, parts, read_parts, schema, write_shard
from cdkit.tokens.vocabulary import Tower, Vocabulary

COUNTS_FOLDER = "token_counts"
WORDS_COLUMN = "words"
_CAPTIONS_AT_ONCE, _TEXTS_AT_ONCE = 500_000, 20_000
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
    texts = captions if isinstance(captions, pa.Array) else pa.array(captions, pa.large_string())
    weights = np.ones(len(texts), dtype=np.int64) if rows is None else rows
    for start in range(0, len(texts), _CAPTIONS_AT_ONCE):
        yield texts.slice(start, _CAPTIONS_AT_ONCE), weights[start : start + _CAPTIONS_AT_ONCE]


def _word_texts(captions: pa.Array, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Every distinct space-separated word once, as texts of words that occur equally often, with that number."""
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
    borders = [0, *(np.flatnonzero(np.diff(counts)) + 1).tolist(), len(counts)]
    for start, end in pairwise(borders):
        for cut in range(start, end, _WORDS_PER_TEXT):
            yield cut, min(cut + _WORDS_PER_TEXT, end)


def _add_up(texts: Sequence[str], weights: np.ndarray, tower: Tower) -> np.ndarray:
    size = len(tower.vocabulary)
    total = np.zeros(size, dtype=np.int64)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        encoded = tower.encode(texts[start : start + _TEXTS_AT_ONCE])
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        ids = np.fromiter((index for ids_of_text in encoded for index in ids_of_text), np.int64, int(lengths.sum()))
        repeated = np.repeat(weights[start : start + len(encoded)], lengths)
        total += np.bincount(ids, repeated, minlength=size).astype(np.int64)
    return total


@dataclass(frozen=True)
class TokenCounts:
    """Counts per tower (int64 [vocabulary size] each), rows counted, and rows there were (None: not known).

    words: how often the surface form of each of the first tower's tokens stands as a word of its own; None where that
    was not counted.
    """

    towers: tuple[Tower, ...]
    counts: tuple[np.ndarray, ...]
    words: np.ndarray | None
    sampled: int | None
    available: int | None

    def as_json(self) -> dict[str, Any]:
        """Totals per tower: what `cdkit tokens count --format json` prints, less the folder."""
        return {
            "rows": self.sampled,
            "available": self.available,
            "towers": [
                {
                    "tokenizer": tower.name,
                    "vocabulary": len(tower.vocabulary),
                    "tokens": int(counts.sum()),
                    "distinct": int((counts > 0).sum()),
                }
                for tower, counts in zip(self.towers, self.counts, strict=True)
            ],
        }


def write_counts(folder: Path, token_counts: TokenCounts, fingerprint: str) -> None:
    """Write one table per tower, each atomically, the first tower's last."""
    facts = {"sampled": token_counts.sampled, "available": token_counts.available}
    for (name, tower), counts in reversed(list(zip(_folders(token_counts.towers), token_counts.counts, strict=True))):
        ids = np.arange(len(counts), dtype=np.int32)
        table = pa.table([ids, list(tower.vocabulary.entries), counts], schema=schema("token_counts"))
        if name == COUNTS_FOLDER and token_counts.words is not None:
            table = table.append_column(WORDS_COLUMN, pa.array(token_counts.words))
        write_shard(folder / name / part_name(0), table, fingerprint=fingerprint, facts=facts)


def finished_counts(folder: Path, towers: Sequence[Tower], fingerprint: str) -> TokenCounts | None:
    """The counts made under `fingerprint`; None unless every tower's are there."""
    paths = [folder / name / part_name(0) for name, _ in _folders(towers)]
    done = all(finished_facts(path, fingerprint) is not None for path in paths)
    return read_counts(folder, towers) if done else None


def read_counts(folder: Path, towers: Sequence[Tower]) -> TokenCounts:
    """The counts a `token-counts` (or `tokens`) stage left in `folder`, checked against the towers' vocabularies.

    Raises InputError when there are none, when they are damaged, or when they were made with another tokenizer.
    """
    tables = [_read_tower(folder / name, tower) for name, tower in _folders(towers)]
    facts = _facts(folder / COUNTS_FOLDER)
    words = _column(tables[0], WORDS_COLUMN) if WORDS_COLUMN in tables[0].column_names else None
    counts = tuple(_column(table, "count") for table in tables)
    return TokenCounts(tuple(towers), counts, words, facts.get("sampled"), facts.get("available"))


def _folders(towers: Sequence[Tower]) -> list[tuple[str, Tower]]:
    return [(COUNTS_FOLDER if not k else f"{COUNTS_FOLDER}_{k + 1}", tower) for k, tower in enumerate(towers)]


def _column(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).to_numpy(), dtype=np.int64)


def _read_tower(folder: Path, tower: Tower) -> pa.Table:
    """One tower's table in the order of ids, known to be of that tower's vocabulary."""
    if not parts(folder):
        raise InputError(
            f"{folder.parent} holds no counts for {tower.name} ({folder.name}/).",
            hint="Make them with cdkit tokens count and the same --tokenizer.",
        )
    table = pa.concat_tables(read_parts(folder), promote_options="default")
    fields = schema("token_counts")
    if not set(fields.names) <= set(table.column_names):
        raise InputError(f"{folder} is not a table of token counts.", hint="Make it with cdkit tokens count.")
    table = table.sort_by("token_id")
    same_ids = table.column("token_id").to_pylist() == list(range(len(tower.vocabulary)))
    if not same_ids or tuple(table.column("token").to_pylist()) != tower.vocabulary.entries:
        raise InputError(
            f"The counts in {folder} were made with another tokenizer than {tower.name}'s.",
            hint="Give the --tokenizer they were made with, or count again.",
        )
    if table.column("count").null_count or not pa.types.is_integer(table.schema.field("count").type):
        raise InputError(f"The counts in {folder} are damaged.", hint="Count again with cdkit tokens count --force.")
    return table


def _facts(folder: Path) -> dict[str, Any]:
    """How many rows the counts are of; empty for a table that cdkit did not write."""
    metadata = pq.read_metadata(parts(folder)[0]).metadata or {}
    return dict(json.loads(metadata.get(FACTS_KEY.encode(), b"{}")))
