"""A text encoder over one text tower, in length-sorted batches: trimmed where that is exact, else at full length."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdkit.core.errors import InputError, ResourceError
from cdkit.core.formatting import json_text
from cdkit.core.threads import separate_threads
from cdkit.encoders.batches import batching_of, length_sorted_batches
from cdkit.encoders.causal_tower import Before, CausalTower, same_without_padding
from cdkit.encoders.cpu_products import use_fast_products
from cdkit.encoders.shared_starts import SharedStarts
from cdkit.encoders.tokenizing import Tokenizer, Tokens

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


# What the error of a half precision is measured on: short and long, plain and not.
SAMPLE = (
    *("a dog", "", "Two red cars parked in front of an old house by the sea, oil on canvas", "🎉🎉 20% OFF!!! #sale"),
    *("Blick auf die Altstadt von Zürich im Winter", "IMG_20190714_113355.jpg", "the " * 100, "東京タワーの夜景"),
)
# Batches on a device at a time: one is computed, one waits for it, one is copied back.
QUEUED = 3
LEAST_TOKENS = 1024
# Captions from which on it pays to look for what they begin with alike.
LEAST_SHARING = 64


class _Pending(Protocol):
    """Embeddings under way: what Future and _DeviceCopy have in common."""

    def result(self) -> tuple[Tensor, Tensor]: ...


class Computed:
    """Embeddings that are there."""

    def __init__(self, *tensors: Tensor) -> None:
        self._embedded, self._broken = tensors

    def result(self) -> tuple[Tensor, Tensor]:
        return self._embedded, self._broken


class _DeviceCopy:
    """Embeddings that a device copies to pinned memory while it goes on."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record()

    def result(self) -> tuple[Tensor, Tensor]:
        self._done.synchronize()
        embedded, broken = self._copies
        return embedded, broken


@dataclass
class _Window:
    """Captions whose embeddings are asked for together; left: those that are still under way."""

    vectors: Tensor
    left: int
    broken: int = 0


class TowerTextEncoder:
    """The TextEncoder of a TextTower. `trims` says whether captions run at their own length.

    precision_error: the largest difference that the number format makes to a component of a normalised embedding,
    against fp32 on the same device. batch_tokens: tokens of a batch, fewer than planned when the device's memory was
    too small.
    """

    def __init__(self, spec: str, tower: TextTower, *, device: str, precision: str, threshold: float) -> None:
        self.spec = spec
        self.precision = precision
        self.default_threshold = threshold
        self.context_length = tower.context_length
        self.device = torch.device(device)
        self.batching = batching_of(device)
        self.batch_tokens = self.batching.tokens
        self._pad_id = tower.pad_id
        self._hash = tower_hash(tower.module.state_dict(), tower.facts, tower.skipped)
        self.trims = tower.trimmed is not None and same_without_padding(
            tower.trimmed,
            tower.padded,
            tower.tokenizer,
            context_length=tower.context_length,
            pad_id=tower.pad_id,
        )
        self.tokenizer = tower.tokenizer if self.trims else tower.tokenizer.full_length()
        self._trimmed = tower.trimmed if self.trims else None
        self._module: nn.Module = self._trimmed or tower.module
        self._forward: Callable[..., Tensor] = self._trimmed or tower.padded
        self._module.eval().requires_grad_(False).to(self.device)
        sample = self.tokenizer(SAMPLE)
        exact = self._embed(self._table(sample, np.arange(len(SAMPLE))))[0] if precision != "fp32" else None
        self._module.to(PRECISIONS[precision])
        if self.device.type == "cpu":
            use_fast_products(self._module)
        self._starts: SharedStarts | None = None
        if self._trimmed is not None and device == "cpu" and precision == "fp32":
            pooled = int(sample.ids.max()) if self._trimmed.end_id is None else self._trimmed.end_id
            self._starts = SharedStarts(self._trimmed, int(sample.ids[0]), pooled)
        embedded, _ = self._embed(self._table(sample, np.arange(len(SAMPLE))))
        self.precision_error = 0.0 if exact is None else float((embedded - exact).abs().max())
        self.dimension = int(embedded.shape[1])

    def weights_hash(self) -> str:
        return self._hash

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Token ids of captions as written: what encode_tokens takes."""
        return self.tokenizer(captions)

    def token_counts(self, captions: Sequence[str]) -> np.ndarray:
        return self.tokenizer(captions).full_lengths

    def encode(self, captions: Sequence[str], *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        return self.encode_tokens(self.tokenizer(captions), advance=advance)

    def encode_tokens(self, tokens: Tokens, *, advance: Callable[[int], None] | None = None) -> np.ndarray:
        """float32 [n, dimension], rows of norm 1; raises InputError when some are not numbers."""
        return next(self.encode_windows([tokens], advance=advance))

    def encode_windows(
        self,
        windows: Iterable[Tokens],
        *,
        half: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> Iterator[np.ndarray]:
        """The embeddings of one window of captions after another, float16 when `half`, as soon as each is complete.

        The device is given the next batches, of the next window too, before the last ones are back. Which captions
        share a batch depends on their window alone. Raises InputError when some embeddings are not numbers.
        """
        kind = torch.float16 if half else torch.float32
        most = QUEUED if self.device.type != "cpu" else 2 * torch.get_num_threads()
        waiting: deque[tuple[_Window, np.ndarray, _Pending | None]] = deque()
        for tokens in windows:
            count = len(tokens.full_lengths)
            window = _Window(torch.empty(count, self.dimension, dtype=kind), count)
            if not count:
                waiting.append((window, np.empty(0, np.int64), None))
            for rows, before in self._batches(tokens):
                for part, pending in self._queue(tokens, rows, kind, before):
                    waiting.append((window, part, pending))
                    while len(waiting) > most:
                        yield from self._collect(*waiting.popleft(), advance)
        while waiting:
            yield from self._collect(*waiting.popleft(), advance)

    def _batches(self, tokens: Tokens) -> Iterator[tuple[np.ndarray, Sequence[Before] | None]]:
        """Rows that run together, and what stands before the tokens of theirs that are run."""
        widths = tokens.lengths if self.trims else np.full(len(tokens.full_lengths), self.context_length)
        if self._starts is None or len(widths) < LEAST_SHARING:
            for rows in length_sorted_batches(widths, self.batching):
                yield rows, None
            return
        for group in self._starts.groups(tokens):
            for places in length_sorted_batches(widths[group.rows] - group.skipped, self.batching):
                rows = group.rows[places]
                yield rows, group.before(rows)

    def _queue(
        self, tokens: Tokens, rows: np.ndarray, kind: torch.dtype, before: Sequence[Before] | None = None
    ) -> Iterator[tuple[np.ndarray, _Pending]]:
        """Set a batch going; in smaller batches from now on where the device has too little memory for it."""
        width = int(tokens.lengths[rows].max()) if self.trims else self.context_length
        fitting = max(1, self.batch_tokens // width) if self.batch_tokens < self.batching.tokens else len(rows)
        if len(rows) > fitting:
            for start in range(0, len(rows), fitting):
                yield from self._queue(tokens, rows[start : start + fitting], kind)
            return
        table = self._table(tokens, rows)
        if self.device.type == "cpu":
            yield rows, separate_threads().submit(self._embed, table, kind, before)
            return
        try:
            pending = self._on_device(table, kind)
        except torch.OutOfMemoryError as error:
            while self.batch_tokens >= table.numel():
                self.batch_tokens //= 2
            if self.batch_tokens < LEAST_TOKENS:
                raise ResourceError(
                    f"{self.device} has too little memory for the encoder {self.spec!r}.",
                    hint="Close what else uses it, or choose --device cpu.",
                ) from error
        else:
            yield rows, pending
            return
        # Outside of the handler, whose error holds on to what was computed.
        torch.cuda.empty_cache()
        yield from self._queue(tokens, rows, kind)

    def _on_device(self, table: Tensor, kind: torch.dtype) -> _Pending:
        if self.device.type != "cuda":
            return Computed(*(part.cpu() for part in self._embed(table, kind)))
        return _DeviceCopy(*self._embed(table.pin_memory().to(self.device, non_blocking=True), kind))

    def _collect(
        self, window: _Window, rows: np.ndarray, pending: _Pending | None, advance: Callable[[int], None] | None
    ) -> Iterator[np.ndarray]:
        """Put a finished batch into its window; the window's embeddings when that was the last one."""
        if pending is not None:
            embedded, broken = pending.result()
            window.vectors[torch.from_numpy(rows)] = embedded
            window.broken += int(broken)
            window.left -= len(rows)
            if advance is not None:
                advance(len(rows))
        if window.left:
            return
        if window.broken:
            raise InputError(
                f"The encoder {self.spec!r} ({self.precision}) gives NaN, infinite or zero embeddings "
                f"for {window.broken} of {len(window.vectors)} captions.",
                hint="Its checkpoint is broken; use another copy."
                if self.precision == "fp32"
                else "Try --precision fp32; if that fails too, its checkpoint is broken.",
            )
        yield window.vectors.numpy()

    def _table(self, tokens: Tokens, rows: np.ndarray) -> Tensor:
        """int32 [rows, longest of them or context]."""
        return torch.from_numpy(tokens.padded(rows, self._pad_id, None if self.trims else self.context_length))

    @torch.inference_mode()
    def _embed(
        self, table: Tensor, kind: torch.dtype = torch.float32, before: Sequence[Before] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalised embeddings of token ids, and how many of them are none: NaN, or without a direction."""
        table = table.to(self.device)
        if before is not None:
            embedded = self._forward(table, before)
        else:
            embedded = self._forward(table if self._trimmed is not None else table.long())
        embedded = F.normalize(embedded.float(), dim=-1)
        # NaN compares false.
        broken = ((embedded.square().sum(dim=-1) - 1).abs() < 0.01).logical_not().sum()
        return embedded.to(kind), broken


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
