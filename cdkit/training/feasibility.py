"""Whether a training fits its device: said before it starts, instead of it (a dry run), or when memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.errors import CdkitError, ConfigError, ResourceError, shortage
from cdkit.core.machine import choose_device
from cdkit.deltas.methods import METHODS
from cdkit.training.base_facts import BaseFacts, read_base
from cdkit.training.fit import fitted, smaller_fit
from cdkit.training.memory import FP32, GIB, MemoryEstimate, device_memory, estimate_memory, gigabytes
from cdkit.training.plan import Plan, make_plan

if TYPE_CHECKING:
    from cdkit.training.config import TrainConfig

SPOKEN_FROM = GIB


def dry_run(config: TrainConfig, note: Callable[[str], None]) -> dict[str, Any]:
    """Check everything that can be checked without the base model's weights, and estimate the memory.

    Raises what the training itself would raise for folders, photos and settings. A hub id's model is loaded.
    """
    device = choose_device(config.device)
    facts = read_base(config.base)
    plan = make_plan(config, facts, note)
    config = fitted(config, plan, facts, device, note)
    estimate = estimate_memory(config, plan, facts, device)
    memory = device_memory(device)
    free = None if memory is None else memory[0]
    fits = free is None or estimate.total <= free
    recipe = config.recipe()
    return {
        "method": config.method,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "gradient_accumulation": config.gradient_accumulation,
        "gradient_checkpointing": config.gradient_checkpointing,
        "learning_rate": recipe.learning_rate,
        "resolution": plan.resolution,
        "prompts": plan.prompts,
        "photos": sum(len(planned.squares) for planned in plan.concepts),
        "regularization": sum(len(planned.regularization) for planned in plan.concepts),
        "parameters": estimate.trained_weights // FP32,
        "device": str(device),
        "memory": estimate.as_json(),
        "free": free,
        "fits": fits,
        "lower": "" if fits else what_to_lower(config, plan, facts, device),
    }


def check_memory(
    config: TrainConfig, plan: Plan, facts: BaseFacts, device: torch.device, note: Callable[[str], None]
) -> MemoryEstimate:
    """Say what a large training will take, and warn when that is more than is free.

    Raises ConfigError when weights, gradients and optimizer states alone are more than the device has.
    """
    estimate = estimate_memory(config, plan, facts, device)
    memory = device_memory(device)
    if memory is None:
        return estimate
    free, total = (part // (config.processes if device.type == "cpu" else 1) for part in memory)
    if estimate.total <= min(free, total):
        if estimate.total >= SPOKEN_FROM:
            note(f"Memory on {device}: about {estimate.sentence()}; {gigabytes(free)} are free.")
        return estimate
    lower = what_to_lower(config, plan, facts, device)
    if estimate.certain > total:
        raise ConfigError(
            f"{config.method} on {config.base} needs {gigabytes(estimate.certain)} for weights, gradients and "
            f"optimizer alone; {device} has {gigabytes(total)}.",
            hint=lower,
        )
    note(f"Memory on {device} may not suffice: about {estimate.sentence()}; {gigabytes(free)} are free. {lower}")
    return estimate


def what_to_lower(config: TrainConfig, plan: Plan, facts: BaseFacts, device: torch.device) -> str:
    """What would take less memory, with how much that would be, the smallest last."""
    batch = config.recipe().batch_size
    choices: dict[str, dict[str, Any]] = {}
    if batch > 1:
        same = batch * config.gradient_accumulation
        choices[f"--batch-size 1 --gradient-accumulation {same} (the same result)"] = {
            "batch_size": 1,
            "gradient_accumulation": same,
        }
    if not config.gradient_checkpointing:
        choices["--gradient-checkpointing (the same result)"] = {"gradient_checkpointing": True}
    if config.precision == "no":
        choices["--precision bf16"] = {"precision": "bf16"}
    if METHODS[config.method].unet not in (METHODS["custom-diffusion"].unet, METHODS["textual-inversion"].unet):
        choices["--method custom-diffusion"] = {"method": "custom-diffusion"}
    totals = [
        (estimate_memory(config.model_copy(update=change), plan, facts, device).total, words)
        for words, change in choices.items()
    ]
    together = {key: value for change in choices.values() for key, value in change.items()}
    least = estimate_memory(config.model_copy(update=together), plan, facts, device).total
    listed = "; ".join(f"{words}: {gigabytes(total)}" for total, words in sorted(totals, reverse=True))
    return f"Less would take: {listed or 'a lower --resolution'}; all together: {gigabytes(least)}."


def out_of_memory(
    error: BaseException, config: TrainConfig, device: torch.device, step: int = 0, *, kept: bool = False
) -> ResourceError:
    """What to say when the memory ran out, at a step counted from 1 or before the first.

    kept: whether there is a checkpoint of the step before.
    """
    text = (str(error).strip().splitlines() or ["the machine has no more"])[0]
    went_on = f" The checkpoint of step {step - 1} is there: the training goes on from it." if kept else ""
    return ResourceError(
        f"Out of memory{f' at step {step}' if step else ''}: {text}",
        hint=f"Run the same command with --fit {smaller_fit(config, device)}, which gives the same result in smaller "
        f"batches; or lower --batch-size and raise --gradient-accumulation as much, use --gradient-checkpointing, "
        f"--precision bf16, a lower --resolution, or a method that trains less.{went_on}",
    )


@contextmanager
def memory_explained(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into an error that says what to lower."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CdkitError) or shortage(error) is None:
            raise
        raise out_of_memory(error, config, choose_device(config.device)) from error
