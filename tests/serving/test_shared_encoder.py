"""The shared encoder: one batch for requests that come together, equal embeddings, errors for all they concern."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cdkit.serving.shared_encoder import SharedEncoder
from tests.support.hashing_encoder import HashingEncoder


class SlowEncoder(HashingEncoder):
    """Waits at its first batch until it is let go on, and fails for a word."""

    def __init__(self) -> None:
        super().__init__(16)
        self.started, self.go_on = threading.Event(), threading.Event()

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        self.started.set()
        assert self.go_on.wait(30)
        if "bad" in captions:
            raise ValueError("bad")
        return super().encode(captions)


def test_requests_that_come_together_are_one_batch() -> None:
    slow = SlowEncoder()
    shared = SharedEncoder(slow)
    texts = [[f"a dog {number}", "the same"] for number in range(8)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(shared.encode, ["first"])
        assert slow.started.wait(30)
        others = [pool.submit(shared.encode, pair) for pair in texts]
        while len(shared._waiting) < 8:
            pass
        slow.go_on.set()
        vectors = [other.result(30) for other in others]
        assert first.result(30).shape == (1, 16)
    assert shared.use.batches == 2
    assert slow.encoded == 10
    expected = HashingEncoder(16)
    assert all(np.array_equal(found, expected.encode(pair)) for found, pair in zip(vectors, texts, strict=True))


def test_what_was_asked_for_before_is_remembered_within_bounds() -> None:
    inner = HashingEncoder(16)
    shared = SharedEncoder(inner, memory_bytes=3 * (4 * 16 + 200))
    vectors = shared.encode(["a", "b", "a", "c"])
    assert inner.encoded == 3
    assert np.array_equal(vectors[0], vectors[2])
    assert np.array_equal(shared.encode(["c", "a"]), vectors[[3, 0]])
    assert inner.encoded == 3
    shared.encode(["d"])
    shared.encode(["b"])
    assert inner.encoded == 5
    assert shared.encode([]).shape == (0, 16)


def test_an_error_reaches_all_who_waited_for_that_batch_and_nobody_else() -> None:
    slow = SlowEncoder()
    shared = SharedEncoder(slow)
    slow.go_on.set()
    with pytest.raises(ValueError, match="bad"):
        shared.encode(["good", "bad"])
    assert shared.encode(["good"]).shape == (1, 16)
