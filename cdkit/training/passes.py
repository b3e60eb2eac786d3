"""Passes: a batch forward and backward, kernel by kernel, or replayed as one CUDA graph.

A graph is launched at once, so that the GPU never waits for Python: the same kernels on the same addresses, into
which each batch is copied.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from cdkit.deltas.text_features import TextFeatures
from cdkit.training.batches import Batch
from cdkit.training.denoising import Denoising

WARM_UPS = 2
Gradients = tuple[torch.Tensor, list[torch.Tensor | None]]
# A batch's shape, and whether anything trains in front of the U-Net: a batch of regularization images alone has not.
Kind = tuple[tuple[int, ...], bool]
Record = Callable[[Callable[[], None], Callable[[], object]], Callable[[], None]]


def cuda_graph(work: Callable[[], None], rehearsal: Callable[[], object]) -> Callable[[], None]:
    """Record what some work launches, and return what launches it again: the tensors it made are written anew.

    rehearsal: launches the same kernels, and leaves nothing behind.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # Libraries choose their kernels and take their workspaces at first use.
        for _ in range(WARM_UPS):
            rehearsal()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the GPU meanwhile. No autograd graph of the same weights may be alive: its nodes would
    # draw the stream they were made on into the recording, which breaks it.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


class EagerPass:
    """A batch forward and backward, kernel by kernel.

    backward: adds a loss' gradients, scaled where the number format asks for it. number: the samples that a process
    has in one step, over which the loss is the mean.
    """

    def __init__(self, denoising: Denoising, backward: Callable[[torch.Tensor], None], number: int) -> None:
        self.denoising, self.backward, self.number = denoising, backward, number

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Add the batch's gradients to those of the trained parameters; returns its losses (n,)."""
        losses = self.denoising.losses(batch)
        if losses.requires_grad:  # a batch of regularization images alone teaches no token
            self.backward((losses * batch.weights).sum() / self.number)
        return losses.detach()


class GraphedPass:
    """A batch forward and backward, what the U-Net does of it as one CUDA graph per shape of a batch.

    The text encoders stay outside: how many prompts they read differs from batch to batch, and they are a hundredth
    of the work. eager: what runs where a graph cannot be captured, which is said once by `note`. record: cuda_graph,
    or what does the same.
    """

    def __init__(
        self,
        eager: EagerPass,
        weights: Sequence[torch.nn.Parameter],
        scale: Callable[[torch.Tensor], torch.Tensor],
        note: Callable[[str], None],
        record: Record = cuda_graph,
    ) -> None:
        self.eager, self.weights, self.scale = eager, list(weights), scale
        self.note, self.record = note, record
        self._captured: dict[Kind, _Captured] = {}
        self._failed = False

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Add the batch's gradients to those of the trained parameters; returns its losses (n,)."""
        if self._failed:
            return self.eager(batch)
        features = self.eager.denoising.conditioning.features(batch.prompts)
        if not self.weights and not _leaves(features):
            return self.eager(batch)
        kind: Kind = (tuple(batch.latents.shape), features.hidden.requires_grad)
        captured = self._captured.get(kind) or self._capture(batch, features)
        if captured is None:
            return self.eager(batch)
        self._captured[kind] = captured
        return captured.replay(batch, features)

    def _capture(self, batch: Batch, features: TextFeatures) -> _Captured | None:
        for weight in self.weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        try:
            return _Captured(self._gradients, self.weights, self.record, batch, features)
        except RuntimeError as error:
            # Without graphs the same memory serves text, pictures and the U-Net in turn: it may suffice.
            self._failed = True
            self._captured.clear()
            # What broke the recording comes before what its end says of it.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            reason = str(first).strip().splitlines() or [type(first).__name__]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.note(f"The step runs kernel by kernel: it cannot be captured as a CUDA graph ({reason[0]}).")
        return None

    def _gradients(self, batch: Batch, features: TextFeatures) -> Gradients:
        """Losses (n,), and the gradients of the weights, the text's features and its pooled features."""
        losses = self.eager.denoising.losses_given(features, batch)
        total = self.scale((losses * batch.weights).sum() / self.eager.number)
        sources = [*self.weights, *_leaves(features)]
        return losses.detach(), list(torch.autograd.grad(total, sources, allow_unused=True))


class _Captured:
    """A recorded pass with the tensors it reads and writes."""

    def __init__(
        self,
        gradients: Callable[[Batch, TextFeatures], Gradients],
        weights: Sequence[torch.nn.Parameter],
        record: Record,
        batch: Batch,
        features: TextFeatures,
    ) -> None:
        self.gradients, self.weights = gradients, weights
        self.batch, self.features = _copied(batch), _as_leaves(features)
        self.losses = torch.empty(0)
        self.text_gradients: list[torch.Tensor | None] = []
        self.again = record(self._run, lambda: gradients(self.batch, self.features))

    def _run(self) -> None:
        self.losses, found = self.gradients(self.batch, self.features)
        pairs = [(weight, new) for weight, new in zip(self.weights, found, strict=False) if new is not None]
        totals = [weight.grad for weight, _ in pairs if weight.grad is not None]
        if pairs:
            torch._foreach_add_(totals, [new for _, new in pairs])
        self.text_gradients = found[len(self.weights) :]

    def replay(self, batch: Batch, features: TextFeatures) -> torch.Tensor:
        for name, tensor in _tensors(self.batch).items():
            tensor.copy_(getattr(batch, name), non_blocking=True)
        with torch.no_grad():
            for own, new in zip(_parts(self.features), _parts(features), strict=True):
                own.copy_(new)
        self.again()
        trained = [
            (part, gradient)
            for part, gradient in zip(_leaves(features), self.text_gradients, strict=True)
            if gradient is not None
        ]
        if trained:
            torch.autograd.backward([part for part, _ in trained], [gradient for _, gradient in trained])
        return self.losses.clone()


def _tensors(batch: Batch) -> dict[str, torch.Tensor]:
    values: dict[str, Any] = {entry.name: getattr(batch, entry.name) for entry in fields(batch)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _copied(batch: Batch) -> Batch:
    copies: dict[str, Any] = {name: tensor.clone() for name, tensor in _tensors(batch).items()}
    return replace(batch, **copies)


def _parts(features: TextFeatures) -> list[torch.Tensor]:
    return [part for part in (features.hidden, features.pooled) if part is not None]


def _leaves(features: TextFeatures) -> list[torch.Tensor]:
    """Those of the features that something in front of them trains."""
    return [part for part in _parts(features) if part.requires_grad]


def _as_leaves(features: TextFeatures) -> TextFeatures:
    hidden, pooled = (
        None if part is None else part.detach().clone().requires_grad_(part.requires_grad)
        for part in (features.hidden, features.pooled)
    )
    assert hidden is not None, "features always have a hidden part"
    return TextFeatures(hidden, pooled)
