from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cdkit.encoders import load_text_encoder
from cdkit.encoders.text_tower import batch_threads
from tests.support import tiny_models


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_embeddings_are_the_same_bytes_whatever_the_threads(tmp_path: Path, restored_threads: None) -> None:
    spec = f"open_clip:{tiny_models.open_clip_folder(tmp_path / 'tiny', width=32, heads=2)}"
    captions = [" ".join(f"w{number % 89}" for _ in range(1 + number % 40)) for number in range(600)]
    encoder = load_text_encoder(spec, device="cpu")
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(encoder.encode(captions).tobytes())
        assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(4) as pool:
        found += [vectors.tobytes() for vectors in pool.map(encoder.encode, [captions] * 4)]
    assert len(set(found)) == 1


def test_threads_run_their_operations_alone(restored_threads: None) -> None:
    torch.set_num_threads(3)
    assert set(batch_threads().map(lambda _: torch.get_num_threads(), range(30))) == {1}
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_a_failing_batch_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"open_clip:{tiny_models.open_clip_folder(tmp_path / 'tiny', width=32, heads=2)}"
    encoder = load_text_encoder(spec, device="cpu")

    def broken(*_: object) -> np.ndarray:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(encoder, "_forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        encoder.encode(["a", "b"])
