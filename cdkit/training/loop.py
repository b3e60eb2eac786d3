"""The training loop: steps, accumulation, clipping, checkpoints, metrics. It knows nothing of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.protocols import Context
from cdkit.deltas.methods import ScheduleName
from cdkit.training.batches import Batch, Batches
from cdkit.training.checkpoint import Checkpoints
from cdkit.training.metrics import Metrics
from cdkit.training.processes import average_gradients, check_whole, total
from cdkit.training.trainables import Trainables

if TYPE_CHECKING:
    from accelerate import Accelerator

SPOKEN_SHARE = 10  # the loss is said so many times in a run


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs. accumulation: batches of batch_size samples per process and step; 0 turns off an `every`."""

    steps: int
    batch_size: int
    accumulation: int
    max_grad_norm: float
    checkpoint_every: int
    sample_every: int = 0
    schedule: ScheduleName = "constant"

    def samples_per_process(self) -> int:
        return self.batch_size * self.accumulation

    def rate_share(self, step: int) -> float:
        """What part of their learning rates the parameters get in a step; of the step alone, so that runs resume."""
        return 1.0 if self.schedule == "constant" else 1.0 - step / self.steps


@dataclass
class Loop:
    """One process' part of a training. losses: of a batch, one per sample, differentiable."""

    settings: LoopSettings
    trainables: Trainables
    optimizer: torch.optim.Optimizer
    losses: Callable[[Batch], torch.Tensor]
    batches: Batches
    accelerator: Accelerator
    checkpoints: Checkpoints
    metrics: Metrics
    _rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def run(self, context: Context, draw: Callable[[int], None]) -> None:
        """Train from the newest checkpoint, or from the start, to the end; `draw` is called with a step's number.

        Raises ConfigError when the loss is not finite.
        """
        parameters = self.trainables.named()
        start, facts = self.checkpoints.restore(parameters, self.optimizer)
        optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        if facts.get("scaler") and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        if self.accelerator.is_main_process:
            self.metrics.resume(start)
        if start:
            context.progress.note(f"Going on after step {start}.")
        trained = list(parameters.values())
        with context.progress.task("training", self.settings.steps - start, unit="steps") as task:
            for step in range(start, self.settings.steps):
                sums = self.step(step, optimizer, trained)
                if self.accelerator.is_main_process:
                    self._after(step + 1, sums, context, draw)
                task.advance()
        self.metrics.flush()

    def step(self, step: int, optimizer: Any, trained: list[torch.nn.Parameter]) -> torch.Tensor:
        """One optimizer step; returns the sums that Metrics.add takes."""
        number = self.settings.samples_per_process()
        first = self.accelerator.process_index * number
        sums = torch.zeros(5, device=self.accelerator.device)
        optimizer.zero_grad(set_to_none=True)
        for begin in range(first, first + number, self.settings.batch_size):
            batch = self.batches.make(step, range(begin, begin + self.settings.batch_size))
            with self.accelerator.autocast():
                losses = self.losses(batch)
            weighted = losses * batch.weights
            self.accelerator.backward(weighted.sum() / number)
            sums += _sums(losses.detach(), weighted.detach(), batch.is_regularization)
        average_gradients(trained)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.settings.rate_share(step)
        if self.settings.max_grad_norm:
            self.accelerator.clip_grad_norm_(trained, self.settings.max_grad_norm)
        optimizer.step()
        return total(sums)

    def _after(self, done: int, sums: torch.Tensor, context: Context, draw: Callable[[int], None]) -> None:
        settings = self.settings
        self.metrics.add(done, sums)
        if settings.checkpoint_every and done % settings.checkpoint_every == 0 and done < settings.steps:
            self.metrics.flush()
            check_whole()
            scaler = self.accelerator.scaler
            facts = {"scaler": scaler.state_dict()} if scaler is not None else {}
            self.checkpoints.save(done, self.trainables.named(), self.optimizer, facts)
        if settings.sample_every and (done % settings.sample_every == 0 or done == settings.steps):
            self.metrics.flush()
            draw(done)
        spoken = max(1, settings.steps // SPOKEN_SHARE)
        if done % spoken == 0 and done < settings.steps:
            self.metrics.flush()
            loss = self.metrics.mean_loss(spoken)
            context.progress.note(f"step {done} of {settings.steps}: loss {loss:.4f}, the mean of {spoken} steps")


def _sums(losses: torch.Tensor, weighted: torch.Tensor, is_regularization: torch.Tensor) -> torch.Tensor:
    targets = (~is_regularization).to(losses.dtype)
    count = torch.full_like(losses, 1).sum()
    values = [weighted.sum(), count, (losses * targets).sum(), targets.sum(), (losses * (1 - targets)).sum()]
    return torch.stack(values)
