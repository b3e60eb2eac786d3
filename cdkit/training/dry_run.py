"""What a training would do and take, without doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from cdkit.core.devices import choose_device
from cdkit.deltas.base_model import load_base_model
from cdkit.training.base_facts import facts_of_files, facts_of_pipeline
from cdkit.training.memory import configs_of_base, device_memory, estimate_memory, what_to_lower
from cdkit.training.plan import make_plan

if TYPE_CHECKING:
    from cdkit.training.config import TrainConfig


def preview(config: TrainConfig, note: Callable[[str], None]) -> dict[str, Any]:
    """Check everything that can be checked without the base model's weights, and estimate the memory.

    Raises what the training itself would raise for folders, photos and settings. A hub id's model is loaded.
    """
    device = choose_device(config.device)
    facts, pipeline = facts_of_files(config.base), None
    if facts is None:
        pipeline = load_base_model(config.base, device=torch.device("cpu"))
        facts = facts_of_pipeline(config.base, pipeline)
    plan = make_plan(config, facts, note)
    models = configs_of_base(config.base, pipeline)
    estimate = estimate_memory(config, plan, models, device)
    has = device_memory(device)
    free = None if has is None else has[0]
    recipe = config.recipe()
    return {
        "method": config.method,
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "learning_rate": recipe.learning_rate,
        "resolution": plan.resolution,
        "prompts": plan.prompts,
        "photos": sum(len(planned.squares) for planned in plan.concepts),
        "regularization": sum(len(planned.regularization) for planned in plan.concepts),
        "parameters": estimate.gradients // (8 if config.processes > 1 else 4),
        "device": str(device),
        "memory": estimate.as_json(),
        "free": free,
        "fits": free is None or estimate.total <= free,
        "lower": "" if free is None or estimate.total <= free else what_to_lower(config, plan, models, device),
    }
