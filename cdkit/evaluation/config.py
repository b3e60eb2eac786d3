"""Settings of the stages evaluate, compare, weight-change and attention."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from cdkit.core.config import ModelConfig, StageConfig, ThreadedConfig, setting
from cdkit.core.fingerprints import EMBEDDED
from cdkit.sampling.config import LARGEST_SEED, SampleConfig
from cdkit.sampling.schedulers import SchedulerName

MAIN = "samples"
UNRELATED = "unrelated"
PAPER_ENCODER = "open_clip:ViT-B-32/openai"
SEPARATOR = ","


class CompareConfig(StageConfig):
    """Which scores to put side by side: a method's name, and its scores folders, one per concept."""

    single: dict[str, list[str]] = setting(
        {}, "A method and its scores of single concepts: folders of cdkit evaluate, joined by commas.", input="folder"
    )
    multi: dict[str, list[str]] = setting({}, "The same for several concepts in one image.", input="folder")
    against: str | None = setting(
        None, "One of the methods: says how the others of its group changed against it, at the same prompts and seeds."
    )
    resamples: int = setting(1000, "Bootstrap resamples.", ge=100)
    seed: int = setting(0, "Seed of the bootstrap.", ge=0)

    @field_validator("single", "multi", mode="before", json_schema_input_type=dict[str, str | list[str]])
    @classmethod
    def _split(cls, methods: Any) -> Any:
        """On the command line and in YAML a single folder, or several with commas, may stand for the list."""
        if not isinstance(methods, dict):
            return methods
        return {
            method: folders.split(SEPARATOR) if isinstance(folders, str) else folders
            for method, folders in methods.items()
        }

    @model_validator(mode="after")
    def _check(self) -> CompareConfig:
        if not self.single and not self.multi:
            raise ValueError("give the scores of at least one method: single or multi")
        names = [*self.single, *self.multi]
        if self.against is not None and self.against not in names:
            raise ValueError(f"against names {self.against!r}, which is none of the methods: {', '.join(names)}")
        return self


class WeightChangeConfig(StageConfig):
    """Which two checkpoints to compare."""

    base: str = setting("embedded", "The first checkpoint: a base model, or a delta on its own base.", input="model")
    tuned: str = setting(help="The second: a delta (on --base), or a fine-tuned pipeline's folder.", input="model")
    device: str | None = setting(None, "Device [default: the CPU].", execution=True)


class AttentionConfig(ModelConfig):
    """What to draw, and with what."""

    deltas: list[str] = setting([], "A delta: a folder or file. Repeatable.", flag="--delta", input="delta")
    prompt: str = setting(help="The prompt whose tokens to look at.", min_length=1)
    seed: int = setting(0, "The image's seed.", ge=0, le=LARGEST_SEED)
    scheduler: SchedulerName = setting("ddim", "The sampler.")
    steps: int = setting(25, "Denoising steps.", ge=1, le=1000)
    guidance: float = setting(6.0, "Classifier-free guidance scale.", ge=0)

    def as_sampling(self) -> SampleConfig:
        """The same drawing as a sampling config."""
        shared = self.model_dump(include={"base", "deltas", "scheduler", "steps", "guidance"})
        return SampleConfig(prompts=[self.prompt], seeds=1, first_seed=self.seed, **shared)


class EvaluateConfig(ThreadedConfig):
    """What to score, and against what."""

    samples: str = setting(help="The samples to score: a folder of cdkit sample.", input="folder")
    compare: dict[str, str] = setting({}, "Further samples to score the same way, each with a name.", input="folder")
    concepts: dict[str, str] = setting(
        {},
        "A concept's category and its photos: a folder, or embedded:NAME. Repeatable.",
        flag="--concept",
        input="folder",
    )
    reference: str | None = setting(
        None, "Real images of the category for KID: a folder or a regularization set.", input="set"
    )
    base_samples: str | None = setting(
        None, "The base model's samples of the same class prompts and seeds: measures drift.", input="folder"
    )
    unrelated: str | None = setting(
        None,
        "Samples of prompts that have nothing to do with the concept: measures preservation, with --base-unrelated.",
        input="folder",
    )
    base_unrelated: str | None = setting(
        None, "The base model's samples of the same unrelated prompts and seeds.", input="folder"
    )
    encoder: str | None = setting(
        None,
        "The CLIP to score with: embedded, open_clip:…, transformers:… [default: embedded; the preset's own].",
        input="encoder",
    )
    dino: str | None = setting(None, "A DINO model for image alignment: transformers:FOLDER_OR_ID.", input="encoder")
    tokens: list[str] = setting(
        [], "A modifier token in the prompts, if it is neither a delta's nor like <new1>. Repeatable.", flag="--token"
    )
    preset: Literal["paper"] | None = setting(
        None, "paper: score with ViT-B/32, and say where the samples fall short of the paper's protocol."
    )
    resamples: int = setting(1000, "Bootstrap resamples.", ge=100)
    seed: int = setting(0, "Seed of the bootstrap.", ge=0)
    device: str | None = setting(None, "Device [default: the GPU when there is one].", execution=True)

    @model_validator(mode="before")
    @classmethod
    def _choose_encoder(cls, values: Any) -> Any:
        """Filled in before anything else, so that its content is in the fingerprint."""
        if not isinstance(values, dict) or values.get("encoder"):
            return values
        return {**values, "encoder": PAPER_ENCODER if values.get("preset") == "paper" else EMBEDDED}

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        if MAIN in self.compare:
            raise ValueError(f"compare cannot be called {MAIN!r}: that is the main set's name")
        if UNRELATED in self.compare:
            raise ValueError(f"compare cannot be called {UNRELATED!r}: that is the name of the set of --unrelated")
        if bool(self.unrelated) != bool(self.base_unrelated):
            raise ValueError("give unrelated and base_unrelated together: preservation compares the two")
        return self

    def is_small(self) -> bool:
        return self.clip == EMBEDDED and self.dino is None

    @property
    def clip(self) -> str:
        """The encoder's spec; never empty, as it is chosen before validation."""
        return self.encoder or EMBEDDED
