"""Schedulers by name: DDIM, DDPM and DPM-Solver++, made from the base model's own noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cdkit.deltas.pipeline_folder import library_errors

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

SchedulerName = Literal["ddim", "ddpm", "dpm++"]


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler's class, its settings on top of the base model's, and the steps it takes by default."""

    class_name: str
    settings: dict[str, Any]
    steps: int


# Stable Diffusion's own PNDM ignores eta, so nothing that reports eta may run on it: the class is always set here.
# 50 DDPM steps at guidance 6 are the paper's single-concept comparison (200 elsewhere; see the `paper` preset).
SCHEDULERS: dict[SchedulerName, SchedulerChoice] = {
    "ddim": SchedulerChoice("DDIMScheduler", {"clip_sample": False}, 50),
    "ddpm": SchedulerChoice("DDPMScheduler", {"clip_sample": False}, 50),
    "dpm++": SchedulerChoice("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, 25),
}


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Whether a scheduler is one of flow matching."""
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))


def make_scheduler(name: SchedulerName, current: SchedulerMixin) -> SchedulerMixin:
    """The named scheduler with the noise schedule and prediction type of the base model's `current` one.

    A model of flow matching keeps its own: none of the named ones follows its path.
    """
    import diffusers

    if is_flow(current):
        return current

    choice = SCHEDULERS[name]
    with library_errors("The base model's scheduler"):
        return getattr(diffusers, choice.class_name).from_config(current.config, **choice.settings)
