"""The training loop: steps, accumulation, clipping, checkpoints, metrics. It knows nothing of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.errors import shortage
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder, flush, flush_names
from cdkit.training.checkpoint import CHECKPOINTS, Checkpoints
from cdkit.training.early_stop import EarlyStop, is_checked
from cdkit.training.feasibility import out_of_memory
from cdkit.training.live_page import LivePage
from cdkit.training.metrics import METRICS_NAME, Metrics
from cdkit.training.passes import EagerPass, GraphedPass
from cdkit.training.processes import average_gradients, check_whole, total
from cdkit.training.setup import Setup

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

    from cdkit.training.config import TrainConfig

# Draws samples after so many steps, and returns them by prompt.
Draw = Callable[[int], "Mapping[str, Sequence[Image.Image]]"]
SAMPLES = "samples"
WEIGHT_DECAY = 1e-2
STEPS_BETWEEN_QUESTIONS = 25  # how many steps a GPU may run ahead of the losses that are read
SPOKEN_SHARE = 10  # the loss is said so many times in a run


class Loop:
    """One process' part of a training. early_stop: of the first process, where the training may end early; done: how
    many steps it had in the end."""

    def __init__(
        self,
        config: TrainConfig,
        setup: Setup,
        out: Folder,
        accelerator: Accelerator,
        note: Callable[[str], None] = lambda message: None,
        early_stop: EarlyStop | None = None,
    ) -> None:
        self.early_stop, self.done = early_stop, 0
        self.config, self.recipe = config, config.recipe()
        self.trainables, self.denoising, self.batches = setup.trainables, setup.denoising, setup.batches
        self.accelerator = accelerator
        self.number = self.recipe.batch_size * config.gradient_accumulation
        self.add_gradients = self._passes(note)
        rates = self.recipe.learning_rate, self.recipe.token_learning_rate
        self.optimizer = self.trainables.optimizer(*rates, WEIGHT_DECAY)
        self.out, self.checkpoints = out, Checkpoints(out.sub(CHECKPOINTS).path)
        interval = 1 if accelerator.device.type == "cpu" else STEPS_BETWEEN_QUESTIONS
        self.metrics = Metrics(
            out / METRICS_NAME,
            interval,
            lambda step, values: accelerator.log(dict(values), step),
            lambda step: self.batches.names(step - 1),
        )
        self.page = LivePage(out.path, self.recipe.steps, SAMPLES)
        # Whether the weights are those of a whole number of steps.
        self._whole = True
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def _passes(self, note: Callable[[str], None]) -> EagerPass | GraphedPass:
        """How a batch goes through: as a CUDA graph where that can be, else kernel by kernel."""
        eager = EagerPass(self.denoising, self.accelerator.backward, self.number)
        if self.accelerator.device.type != "cuda" or self.config.compile or self.config.gradient_checkpointing:
            return eager
        scaler = self.accelerator.scaler
        scale = (lambda loss: loss) if scaler is None else scaler.scale
        return GraphedPass(eager, list(self.trainables.weights.values()), scale, note)

    def run(self, context: Context, draw: Draw) -> None:
        """Train from the newest checkpoint, or from the start, to the end, or until the photos are but copied.

        Raises ConfigError when the loss is not finite.
        """
        parameters = self.trainables.named()
        start, facts = self.checkpoints.restore(parameters, self.optimizer)
        optimizer = self.accelerator.prepare_optimizer(self.optimizer)
        if facts.get("scaler") and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(facts["scaler"])
        if self.early_stop is not None:
            self.early_stop.in_a_row = int(facts.get("copies_in_a_row", 0))
        if self.accelerator.is_main_process:
            self.metrics.resume(start)
            self.checkpoints.prune(start)
        if start:
            context.progress.note(f"Going on after step {start}.")
        trained = list(parameters.values())
        with context.progress.task("training", self.recipe.steps - start, unit="steps") as task:
            for step in range(start, self.recipe.steps):
                self._whole = True
                try:
                    sums = self.step(step, optimizer, trained)
                except KeyboardInterrupt:
                    if self.accelerator.is_main_process and self._whole and step > start:
                        self._keep(step)
                    raise
                except Exception as error:
                    if shortage(error) is None:
                        raise
                    kept = self.accelerator.is_main_process and step > start and self._keep(step)
                    raise out_of_memory(error, self.config, self.accelerator.device, step + 1, kept=kept) from error
                self.done = step + 1
                ends = self.accelerator.is_main_process and self._after(self.done, sums, context, draw)
                task.advance()
                if self._ends_together(ends):
                    break
        self.metrics.flush()
        if self.accelerator.is_main_process:
            # This file grows under its own name: what says that the training is done must not be kept without its end.
            flush(self.metrics.path)
            self.page.update(self.metrics.rows, finished=True)

    def step(self, step: int, optimizer: Any, trained: list[torch.nn.Parameter]) -> torch.Tensor:
        """One optimizer step; returns the sums that Metrics.add takes."""
        first = self.accelerator.process_index * self.number
        sums = torch.zeros(5, device=self.accelerator.device)
        # In place: a CUDA graph adds to the tensors it was captured with.
        optimizer.zero_grad(set_to_none=False)
        for begin in range(first, first + self.number, self.recipe.batch_size):
            samples = range(begin, begin + self.recipe.batch_size)
            batch = self.denoising.completed(self.batches.make(step, samples))
            losses = self.add_gradients(batch)
            sums += _sums(losses, losses * batch.weights, batch.is_regularization)
        average_gradients(trained)
        # Of the step alone, so that runs resume.
        share = 1.0 if self.recipe.schedule == "constant" else 1.0 - step / self.recipe.steps
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        if self.config.max_grad_norm:
            # As accelerate does; its own function first loads what gradients spread over devices need.
            self.accelerator.unscale_gradients()
            torch.nn.utils.clip_grad_norm_(trained, self.config.max_grad_norm)
        self._whole = False
        optimizer.step()
        return total(sums)

    def _ends_together(self, ends: bool) -> bool:
        """Whether the first process has found that the training is to end: all end with it."""
        if self.config.early_stop is None or not is_checked(self.done, self.recipe.steps):
            return False
        return bool(total(torch.tensor(float(ends), device=self.accelerator.device)))

    def _keep(self, done: int) -> bool:
        """Write a checkpoint after so many steps; False where none are wanted."""
        if not self.config.checkpoint_every:
            return False
        self.metrics.flush()
        # A checkpoint that a power loss leaves must not stand for steps whose losses or samples it took.
        flush(self.metrics.path)
        flush_names(self.out.path)
        check_whole()
        scaler = self.accelerator.scaler
        facts: dict[str, Any] = {"scaler": scaler.state_dict()} if scaler is not None else {}
        if self.early_stop is not None:
            facts["copies_in_a_row"] = self.early_stop.in_a_row
        self.checkpoints.save(done, self.trainables.named(), self.optimizer, facts)
        return True

    def _after(self, done: int, sums: torch.Tensor, context: Context, draw: Draw) -> bool:
        """What follows a step; returns whether the training is to end."""
        config, steps = self.config, self.recipe.steps
        self.metrics.add(done, sums)
        ends, checks = False, self.early_stop is not None and is_checked(done, steps)
        if checks or (config.sample_every and (done % config.sample_every == 0 or done == steps)):
            self.metrics.flush()
            drawn = draw(done)
            ends = checks and self.early_stop is not None and self.early_stop.check(done, drawn)
        if config.checkpoint_every and done % config.checkpoint_every == 0 and done < steps:
            self._keep(done)
        self.page.update(self.metrics.rows)
        spoken = max(1, steps // SPOKEN_SHARE)
        if done % spoken == 0 and done < steps:
            self.metrics.flush()
            loss = self.metrics.mean_loss(spoken)
            context.progress.note(f"step {done} of {steps}: loss {loss:.4f}, the mean of {spoken} steps")
        return ends


def _sums(losses: torch.Tensor, weighted: torch.Tensor, is_regularization: torch.Tensor) -> torch.Tensor:
    targets = (~is_regularization).to(losses.dtype)
    count = torch.full_like(losses, 1).sum()
    values = [weighted.sum(), count, (losses * targets).sum(), targets.sum(), (losses * (1 - targets)).sum()]
    return torch.stack(values)
