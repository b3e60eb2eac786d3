"""A text encoder over one text tower, in length-sorted batches: trimmed where that is exact, else at full length."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdkit.core.errors import InputError
from cdkit.core.formatting import json_text
from cdkit.encoders.causal_tower import CausalTower, same_without_padding
from cdkit.encoders.tokenizing import Tokenizer, Tokens

if TYPE_CHECKING:
    from collections.abc import Iterator


# One number for every device, thread count and memory size: which captions share a batch decides the last bits of an
# embedding. Activations of a ViT-B tower then fit a CPU's cache (512 and 2,048 are slower), and a GPU is kept busy
# because the next batch is queued while one runs.
TOKEN_BUDGET = 1024


def length_sorted_batches(lengths: np.ndarray, budget: int = TOKEN_BUDGET) -> Iterator[np.ndarray]:
    """Yield row numbers batch by batch, shortest captions first; every row once.

    lengths: int [n], tokens per row, at least 1. A batch's rows × its longest length stay within `budget`, except that
    one row alone may exceed it. The same lengths give the same batches.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        # In ascending order the last row is the longest, so rows × longest only grows: the fitting ones are a prefix.
        ahead = lengths[order[start : start + max(1, budget)]].astype(np.int64)
        sizes = ahead * np.arange(1, len(ahead) + 1)
        stop = start + max(1, int(np.searchsorted(sizes, budget, side="right")))
        yield order[start:stop]
        start = stop


_STARTING = threading.Lock()


def batch_threads() -> ThreadPoolExecutor:
    """As many threads as torch may use here, each running its operations alone. Kept for the life of the process."""
    with _STARTING:
        return _start(torch.get_num_threads())


@cache
def _start(count: int) -> ThreadPoolExecutor:
    before = torch.get_num_threads()
    together = threading.Barrier(count)

    def settle(_: int) -> None:
        # A thread takes the process's number at its first look; only what is set after that is its own.
        torch.get_num_threads()
        torch.set_num_threads(1)
        together.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="encode")
    list(pool.map(settle, range(count)))
    # The number for threads to come was set with each thread's own.
    torch.set_num_threads(before)
    return pool


PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TextTower:
    """A library's text tower in fp32 on the CPU.

    module holds its parameters; padded is the library's own forward on int64 [n, context_length]; trimmed runs the
    same weights at any length, None when the config says that padding matters. facts: settings that decide the output
    besides the weights; skipped: prefixes of parameters in `module` that are no part of the text tower.
    """

    module: nn.Module
    padded: Callable[[Tensor], Tensor]
    trimmed: CausalTower | None
    tokenizer: Tokenizer
    context_length: int
    pad_id: int
    facts: Mapping[str, Any]
    skipped: tuple[str, ...] = ()


class TowerTextEncoder:
    """The TextEncoder of a TextTower. `trims` says whether captions run at their own length."""

    def __init__(self, spec: str, tower: TextTower, *, device: str, precision: str, threshold: float) -> None:
        self.spec = spec
        self.precision = precision
        self.default_threshold = threshold
        self.context_length = tower.context_length
        self.device = torch.device(device)
        self._pad_id = tower.pad_id
        self._hash = tower_hash(tower.module.state_dict(), tower.facts, tower.skipped)
        self.trims = tower.trimmed is not None and same_without_padding(
            tower.trimmed,
            tower.padded,
            tower.tokenizer,
            context_length=tower.context_length,
            pad_id=tower.pad_id,
        )
        self._tokenizer = tower.tokenizer if self.trims else tower.tokenizer.full_length()
        self._module = tower.trimmed if self.trims and tower.trimmed is not None else tower.module
        self._forward: Callable[[Tensor], Tensor] = tower.trimmed if self.trims and tower.trimmed else tower.padded
        self._module.eval().requires_grad_(False).to(device=self.device, dtype=PRECISIONS[precision])
        self.dimension = int(self._embed(self._tokenizer(["a"]), np.arange(1)).shape[1])

    def weights_hash(self) -> str:
        return self._hash

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids of captions as written: what encode_tokens takes."""
        return self._tokenizer(captions)

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return self._tokenizer(captions).full_lengths

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        return self.encode_tokens(self._tokenizer(captions), advance=advance)

    def encode_tokens(self, tokens: Tokens, *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1; raises InputError when some are not numbers."""
        vectors = np.empty((len(tokens.full_lengths), self.dimension), dtype=np.float32)
        widths = tokens.lengths if self.trims else np.full(len(vectors), self.context_length)
        batches = list(length_sorted_batches(widths))
        for rows, embedded in zip(batches, self._embed_all(tokens, batches), strict=True):
            vectors[rows] = embedded.numpy()
            if advance is not None:
                advance(len(rows))
        self._check(vectors)
        return vectors

    def _embed_all(self, tokens: Tokens, batches: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """Each batch's embeddings, on the CPU, in order."""
        if self.device.type == "cpu":
            yield from batch_threads().map(lambda rows: self._embed(tokens, rows), batches)
            return
        waiting: Tensor | None = None
        for rows in batches:
            embedded = self._embed(tokens, rows)
            # Fetched one batch late, so that a GPU has the next one queued meanwhile.
            if waiting is not None:
                yield waiting.cpu()
            waiting = embedded
        if waiting is not None:
            yield waiting.cpu()

    @torch.inference_mode()
    def _embed(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        table = tokens.padded(rows, self._pad_id, None if self.trims else self.context_length)
        return F.normalize(self._forward(torch.from_numpy(table).to(self.device)).float(), dim=-1)

    def _check(self, vectors: np.ndarray) -> None:
        # A row of zeros has no direction; NaN compares false.
        broken = int((~(np.abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < 0.01)).sum())
        if broken:
            raise InputError(
                f"The encoder {self.spec!r} ({self.precision}) gives NaN, infinite or zero embeddings "
                f"for {broken} of {len(vectors)} captions.",
                hint="Its checkpoint is broken; use another copy."
                if self.precision == "fp32"
                else "Try --precision fp32; if that fails too, its checkpoint is broken.",
            )


def tower_hash(state: Mapping[str, Tensor], facts: Mapping[str, Any], skipped: Iterable[str] = ()) -> str:
    """sha256 over the settings and every tensor's name, type, shape and bytes; `skipped` are prefixes left out."""
    digest = hashlib.sha256(json_text(dict(facts), sort_keys=True, ascii_only=True).encode())
    for name in sorted(state):
        if name.startswith(tuple(skipped)):
            continue
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
