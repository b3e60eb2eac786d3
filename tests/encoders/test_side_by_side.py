from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from cdkit.core.errors import ResourceError
from cdkit.core.threads import separate_threads
from cdkit.encoders import load_text_encoder
from cdkit.encoders.text_tower import Computed, TowerTextEncoder
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
    assert set(separate_threads().map(lambda _: torch.get_num_threads(), range(30))) == {1}
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


class TestLittleMemory:
    """A device that cannot take the usual batches, on which torch's own error says so."""

    @pytest.fixture
    def encoder(self, tmp_path: Path) -> TowerTextEncoder:
        folder = tiny_models.open_clip_folder(tmp_path / "tiny", width=32, heads=2)
        return load_text_encoder(f"open_clip:{folder}", device="cpu")

    def limited(self, encoder: TowerTextEncoder, most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Let the encoder run as on a GPU that takes `most` tokens at a time; the sizes of what it was given."""
        sizes: list[int] = []

        def on_device(table: torch.Tensor, kind: torch.dtype) -> Computed:
            sizes.append(table.numel())
            if table.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            with torch.inference_mode(), monkeypatch.context() as patch:
                patch.setattr(encoder, "device", torch.device("cpu"))
                return Computed(*encoder._embed(table, kind))

        monkeypatch.setattr(encoder, "_on_device", on_device)
        monkeypatch.setattr(encoder, "_starts", None)
        monkeypatch.setattr(encoder, "device", torch.device("cuda"))
        monkeypatch.setattr("cdkit.encoders.text_tower.LEAST_TOKENS", 64)
        return sizes

    def test_batches_are_halved_until_they_fit(
        self, encoder: TowerTextEncoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        captions = [" ".join(f"w{number % 89}" for _ in range(1 + number % 10)) for number in range(300)]
        expected = encoder.encode(captions)
        sizes = self.limited(encoder, 300, monkeypatch)
        assert np.abs(encoder.encode(captions) - expected).max() < 1e-5
        assert encoder.batch_tokens == 256
        # It tries the usual size once only.
        assert sum(size > 300 for size in sizes) == 2

    def test_no_memory_at_all_is_an_error(self, encoder: TowerTextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limited(encoder, 0, monkeypatch)
        with pytest.raises(ResourceError, match="too little memory"):
            encoder.encode(["a dog", "a cat"])
