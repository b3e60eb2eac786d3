"""Samples drawn while a training runs: a contact sheet per chosen step, one row per prompt."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.pictures.grid import write_grid
from cdkit.sampling.config import SampleConfig
from cdkit.sampling.drawing import draw, grid_blocks, plan_samples
from cdkit.sampling.schedulers import make_scheduler

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline
    from PIL import Image

    from cdkit.training.plan import Plan

SEEDS, STEPS = 4, 25


def draw_progress(
    plan: Plan, template: str, pipeline: DiffusionPipeline, accelerator: Accelerator, target: Path
) -> Mapping[str, Sequence[Image.Image]]:
    """Draw each concept's subject, and its category without the word, with seeds 0 to 3 into one PNG.

    Returns the samples by prompt. The pipeline is left as it was. All noise comes from the seeds, so that drawing does
    not change the training.
    """
    subjects = [planned.concept.subject for planned in plan.concepts]
    categories = [planned.concept.category for planned in plan.concepts]
    prompts = list(dict.fromkeys(template.replace("{}", name) for name in (*subjects, *categories)))
    config = SampleConfig(prompts=prompts, seeds=SEEDS, steps=STEPS, resolution=plan.resolution, scheduler="ddim")
    trained_with = pipeline.scheduler
    with (
        tempfile.TemporaryDirectory() as folder,
        accelerator.autocast(),
        _on_device(pipeline, accelerator.device),
    ):
        pipeline.scheduler = make_scheduler("ddim", trained_with)
        try:
            samples, drawn = plan_samples(prompts, config), []
            for start in range(0, len(samples), SEEDS):
                batch = samples[start : start + SEEDS]
                drawn.append(draw(pipeline, batch, config, on_step=_ignore))
                for entry, image in zip(batch, drawn[-1], strict=True):
                    image.save(Path(folder) / entry.name, format="PNG")
            write_grid(grid_blocks(samples, Path(folder)), target, columns=SEEDS)
            return dict(zip(prompts, drawn, strict=True))
        finally:
            pipeline.scheduler = trained_with


def _ignore(amount: float) -> None:
    return None


@contextmanager
def _on_device(pipeline: DiffusionPipeline, device: torch.device) -> Iterator[None]:
    """Bring back the parts that left the device because training needs them no more, for a while."""
    parts: list[Any] = [part for part in pipeline.components.values() if hasattr(part, "parameters")]
    children = [child for part in parts for child in part.children()]
    homes = [
        (child, next(child.parameters()).device) for child in children if next(child.parameters(), None) is not None
    ]
    for part in parts:
        part.to(device)
    try:
        yield
    finally:
        for child, home in homes:
            child.to(home)
