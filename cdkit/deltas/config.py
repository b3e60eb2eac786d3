"""Settings of the stages delta-import, delta-compress and export."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cdkit.core.config import StageConfig, ThreadedConfig, setting


class CompressConfig(ThreadedConfig):
    """Which delta, and how small or how exact."""

    delta: str = setting(help="The delta: a folder, a file, or hub:USER/NAME.", argument=True, input="delta")
    rank: int | None = setting(None, "Rank of every matrix.", ge=1)
    max_error: float | None = setting(
        None, "Largest error of any matrix, relative; each takes the rank it needs.", gt=0, le=1
    )

    @model_validator(mode="after")
    def _one_goal(self) -> CompressConfig:
        if (self.rank is None) == (self.max_error is None):
            raise ValueError("give either rank or max_error")
        return self


Format = Literal["diffusers-lora", "kohya-lora", "webui-diff", "textual-inversion", "diffusers-pipeline"]
# What a LoRA of a full change may be off by when nothing is asked for.
DEFAULT_ERROR = 0.1


class ExportConfig(ThreadedConfig):
    """What to export, as what."""

    delta: str = setting(help="The delta: a folder, a file, or hub:USER/NAME.", argument=True, input="delta")
    to: Format = setting(help="What to make.")
    base: str | None = setting(
        None,
        "Base model: diffusers-pipeline bakes the delta into it [default: the one that the delta names], others check "
        "that it fits.",
        input="model",
    )
    rank: int | None = setting(None, "Rank of a LoRA.", ge=1)
    max_error: float | None = setting(
        None, f"Largest error of a LoRA's matrices, relative [default: {DEFAULT_ERROR}; 0 for a merge].", gt=0, le=1
    )
    scale: float = setting(1.0, "Strength to bake in.", ge=-10, le=10)
    precision: Literal["no", "fp16"] = setting("no", "Number format of the files; no is fp32.")

    @model_validator(mode="after")
    def _check(self) -> ExportConfig:
        if self.rank and self.max_error:
            raise ValueError("give rank or max_error, not both")
        if (self.rank or self.max_error) and not self.to.endswith("-lora"):
            raise ValueError(f"rank and max_error are settings of LoRA files; {self.to} has none")
        return self

    @property
    def half(self) -> bool:
        return self.precision == "fp16"


class ImportDeltaConfig(StageConfig):
    """Which files to import, and what they do not say themselves."""

    files: list[str] = setting(
        help="Weight and embedding files of one model, or their folder.", argument=True, input="folder", min_length=1
    )
    base: str | None = setting(None, "Base model they were trained on; files of whole weights need it.", input="model")
    tokens: list[str] = setting([], "Names for the modifier tokens, in the file's order.", flag="--token")
    category: str | None = setting(None, "What the concept is, e.g. dog: makes the prompt that merging goes by.")
    prompts: list[str] = setting([], "A prompt it was trained with. Repeatable.", flag="--prompt")
