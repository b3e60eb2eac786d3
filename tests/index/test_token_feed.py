"""Captions tokenised ahead in processes: the same tokens in the same order, also when a process dies."""

from __future__ import annotations

import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cdkit.core.errors import InputError, ResourceError
from cdkit.core.shards import part_name, schema, write_shard
from cdkit.encoders.tokenizing import ClipTokenizer, Tokens, joined, simple_tokenizer
from cdkit.index import token_feed
from cdkit.index.token_feed import TokenFeed, pieces, tokeniser_count

CAPTIONS = ["", "a dog", "x" * 10_000, "Caf\u00e9 &amp;amp; \U0001f389", *(f"number {n} of many" for n in range(96))]


@pytest.fixture
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(simple_tokenizer(77), 77)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "captions" / part_name(0)
    path.parent.mkdir()
    ids, rows = pa.array(range(len(CAPTIONS))), pa.array([1] * len(CAPTIONS), pa.int32())
    write_shard(path, pa.table([ids, pa.array(CAPTIONS), rows], schema=schema("captions")), fingerprint="test")
    return path


def same(first: Tokens, second: Tokens) -> bool:
    pairs = ((first.ids, second.ids), (first.starts, second.starts), (first.full_lengths, second.full_lengths))
    return all(np.array_equal(one, other) for one, other in pairs)


def test_a_process_that_dies_costs_nothing_but_time(
    tokenizer: ClipTokenizer, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_feed, "PIECE_ROWS", 10)
    captions = []
    with TokenFeed(tokenizer, 1, ahead=2) as feed:
        for part in feed.tokenised(pieces(shard, 0, len(CAPTIONS))):
            captions.append(part)
            if len(captions) == 3:
                assert feed._pool is not None
                (process,) = feed._pool._processes.values()
                process.kill()
    assert np.concatenate([part.ids for part in captions]).tolist() == list(range(len(CAPTIONS)))
    assert same(joined([part.tokens for part in captions]), tokenizer(CAPTIONS))


def test_without_processes_it_reads_what_is_asked(tokenizer: ClipTokenizer, shard: Path) -> None:
    with TokenFeed(tokenizer, 0, ahead=2) as feed:
        (part,) = feed.tokenised(pieces(shard, 2, 7))
    assert part.ids.tolist() == [2, 3, 4, 5, 6]
    assert same(part.tokens, tokenizer(CAPTIONS[2:7]))


def test_a_damaged_shard_is_named(tokenizer: ClipTokenizer, shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:200])
    with TokenFeed(tokenizer, 0, ahead=2) as feed, pytest.raises(InputError, match="part-00000"):
        list(feed.tokenised(pieces(shard, 0, 5)))


TRAVELLED = """
import sys
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
import cdkit.index.token_feed
tokenizer = ForkingPickler.loads(bytes.fromhex(sys.argv[1]))
print(*tokenizer(["a photo of a d\u00f6g"]).ids, *{"torch", "open_clip", "transformers"} & set(sys.modules))
"""


def test_a_tokenizer_travels_without_the_libraries(tokenizer: ClipTokenizer) -> None:
    sent = bytes(ForkingPickler.dumps(tokenizer))
    assert len(sent) < 1000
    received = ForkingPickler.loads(sent)
    words = [*CAPTIONS, "ababab aaaa", "<end_of_text> a <start_of_text>", "they're 1\u00bd \u6771\u4eac"]
    assert same(received(words), tokenizer(words))
    command = [sys.executable, "-c", TRAVELLED, sent.hex()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert printed == [str(number) for number in tokenizer(["a photo of a d\u00f6g"]).ids]


def test_what_cannot_travel_stays(tokenizer: ClipTokenizer) -> None:
    canonical = ClipTokenizer(type(tokenizer.tokenizer)(clean="canonicalize"), 77)
    more = ClipTokenizer(type(tokenizer.tokenizer)(additional_special_tokens=["<new>"]), 77)
    assert [TokenFeed(kind, 1, ahead=1)._processes for kind in (tokenizer, canonical, more)] == [1, 0, 0]


def test_a_process_that_does_not_answer_is_named(
    tokenizer: ClipTokenizer, shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_feed, "PATIENCE", 0.01)
    with TokenFeed(tokenizer, 1, ahead=1) as feed, pytest.raises(ResourceError, match=r"waited.*part-00000"):
        list(feed.tokenised(pieces(shard, 0, 5)))


def test_processes_where_they_are_worth_starting() -> None:
    assert tokeniser_count(1000, 16, on_gpu=True) == 0
    assert tokeniser_count(10**9, 1, on_gpu=True) == 0
    assert tokeniser_count(10**9, 16, on_gpu=True) == token_feed.MOST_PROCESSES
    assert tokeniser_count(10**9, 4, on_gpu=True) == 3
    assert tokeniser_count(10**9, 16, on_gpu=False) == 1
