"""The sample stage: every prompt with every seed, resumable image by image."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cdkit.core.config import ModelConfig, setting
from cdkit.sampling.schedulers import SCHEDULERS, SchedulerName

LARGEST_SEED = 2**63 - 1
PAPER_STEPS, PAPER_GUIDANCE = 200, 6.0


class SampleConfig(ModelConfig):
    """What to draw, and how."""

    deltas: list[str] = setting(
        [], "A delta: a folder, a file, or hub:USER/NAME. Repeatable.", flag="--delta", input="delta"
    )
    scale: float = setting(
        1.0, "Strength of the deltas' weights; 0 is the base model with the new tokens.", ge=-10, le=10
    )
    prompts: list[str] = setting([], "A prompt. Repeatable.", flag="--prompt")
    prompts_file: str | None = setting(None, "A text file with one prompt a line.", flag="--prompts", input="folder")
    index: str | None = setting(None, "An index folder: captions drawn from it are prompts, too.", input="folder")
    captions_count: int = setting(64, "Captions to draw from the index.", ge=1)
    without: list[str] = setting([], "A word that no drawn caption may have: a concept's. Repeatable.")
    negative_prompt: str = setting("", "What the images should not show.")
    seeds: int = setting(4, "Images per prompt: seeds first-seed, first-seed+1, …", ge=1)
    first_seed: int = setting(0, "The first seed.", ge=0, le=LARGEST_SEED)
    scheduler: SchedulerName = setting("ddim", "The sampler.")
    steps: int | None = setting(None, "Denoising steps [default: 50; 25 for dpm++].", ge=1, le=1000)
    eta: float = setting(0.0, "Noise of DDIM: 0 is deterministic, 1 is DDPM's.", ge=0, le=1)
    guidance: float = setting(6.0, "Classifier-free guidance scale.", ge=0)
    preset: Literal["paper"] | None = setting(None, "paper: the paper's 200 DDPM steps at guidance 6.")
    resolution: int | None = setting(None, "Side of the images in pixels [default: the base model's].", ge=8)
    precision: Literal["no", "bf16", "fp16"] = setting("no", "Compute type; no is fp32.")
    batch_size: int = setting(8, "Images drawn at once; does not change them.", execution=True, ge=1)

    @model_validator(mode="after")
    def _check(self) -> SampleConfig:
        if self.first_seed + self.seeds - 1 > LARGEST_SEED:
            raise ValueError(f"first_seed + seeds goes beyond the largest seed, {LARGEST_SEED}")
        if self.without and not self.index:
            raise ValueError("without is about captions drawn from an index; give index, too")
        if self.eta and self.scheduler != "ddim":
            raise ValueError(f"eta is a setting of ddim; {self.scheduler} would ignore it")
        if self.preset and (self.steps or self.scheduler != "ddim"):
            raise ValueError("the preset sets scheduler and steps; leave them out")
        return self

    def drawn_with(self) -> tuple[SchedulerName, int, float]:
        """Scheduler, steps and guidance after the preset and the defaults."""
        if self.preset == "paper":
            return "ddpm", PAPER_STEPS, PAPER_GUIDANCE
        return self.scheduler, self.steps or SCHEDULERS[self.scheduler].steps, self.guidance
