"""The sample stage: every prompt with every seed, resumable image by image."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from cdkit.config import ModelConfig, setting
from cdkit.datasets import Dataset, write_shard
from cdkit.devices import choose_device
from cdkit.errors import InputError
from cdkit.inputs import Input
from cdkit.manifest import Counts
from cdkit.pictures.grid import Block, Cell, write_grid
from cdkit.protocols import Context
from cdkit.sampling.prompts import gather_prompts, notes_on_prompts
from cdkit.sampling.schedulers import SCHEDULERS, SchedulerName, make_scheduler
from cdkit.storage import Folder, atomic_path
from cdkit.weights.apply import apply_deltas
from cdkit.weights.base_model import load_base_model
from cdkit.weights.delta import delta_tokens, load_delta
from cdkit.weights.resolution import pipeline_resolution

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

LARGEST_SEED = 2**63 - 1
PAPER_STEPS, PAPER_GUIDANCE = 200, 6.0


class SampleConfig(ModelConfig):
    """What to draw, and how."""

    deltas: list[str] = setting([], "A delta: a folder or file. Repeatable.", flag="--delta", input="folder")
    scale: float = setting(
        1.0, "Strength of the deltas' weights; 0 is the base model with the new tokens.", ge=-10, le=10
    )
    prompts: list[str] = setting([], "A prompt. Repeatable.", flag="--prompt")
    prompts_file: str | None = setting(None, "A text file with one prompt a line.", flag="--prompts", input="folder")
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


@dataclass(frozen=True)
class Sample:
    """One image to draw: its prompt, seed and file name."""

    prompt: str
    seed: int
    name: str


def plan_samples(prompts: Sequence[str], config: SampleConfig) -> list[Sample]:
    """Every prompt with every seed, prompts first."""
    return [
        Sample(prompt, seed, f"{position:04d}-{seed}.png")
        for position, prompt in enumerate(prompts)
        for seed in range(config.first_seed, config.first_seed + config.seeds)
    ]


def grid_blocks(samples: Sequence[Sample], images: Path) -> list[Block]:
    """The samples as a grid shows them: a block per prompt, the seed under each image."""
    blocks: dict[str, list[Cell]] = {}
    for entry in samples:
        blocks.setdefault(entry.prompt, []).append(Cell(images / entry.name, (f"seed {entry.seed}",)))
    return [Block(prompt, cells) for prompt, cells in blocks.items()]


def sample(config: SampleConfig, inputs: Mapping[str, Input], out: Folder, context: Context) -> Dataset:
    """Draw what is not drawn yet; the same prompt and seed give the same image whatever the batch size."""
    import pyarrow as pa

    prompts = gather_prompts(config.prompts, config.prompts_file)
    samples = plan_samples(prompts, config)
    images = out.sub("images")
    missing = [entry for entry in samples if not (images / entry.name).exists()]
    seconds = draw_missing(config, prompts, missing, images.path, context) if missing else 0.0
    columns: dict[str, list[Any]] = {
        "prompt": [entry.prompt for entry in samples],
        "seed": [entry.seed for entry in samples],
        "path": [f"images/{entry.name}" for entry in samples],
        "delta": [config.deltas or None] * len(samples),
    }
    types = [("prompt", pa.string()), ("seed", pa.int64()), ("path", pa.string()), ("delta", pa.list_(pa.string()))]
    write_shard(out / "samples.parquet", pa.table(columns, schema=pa.schema(types)), fingerprint="samples")
    write_grid(grid_blocks(samples, images.path), out / "grid.png", columns=config.seeds)
    scheduler, steps, guidance = config.drawn_with()
    details: dict[str, Any] = {"samples": len(samples), "scheduler": scheduler, "steps": steps, "guidance": guidance}
    details["tokens"] = delta_tokens(config.deltas)
    clocks = {"drawn": len(missing), "drawing_seconds": round(seconds, 3)}
    return Dataset("samples", out.path, Counts(len(samples), len(samples)), details, clocks=clocks)


def draw_missing(
    config: SampleConfig, prompts: Sequence[str], missing: Sequence[Sample], images: Path, context: Context
) -> float:
    """Load the model with its deltas and draw `missing` into a folder, under their names; seconds of drawing."""
    device = choose_device(config.device)
    # Damaged deltas are found before the model is loaded, which takes long.
    deltas = [load_delta(path) for path in config.deltas]
    pipeline = load_base_model(config.base, device=device, precision=config.precision)
    pipeline_resolution(pipeline, config.resolution)
    apply_deltas(pipeline, deltas, scale=config.scale, note=context.progress.note)
    for note in notes_on_prompts(prompts, delta_tokens(config.deltas), pipeline):
        context.progress.note(note)
    scheduler, steps, _ = config.drawn_with()
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler)
    batches, clock = range(0, len(missing), config.batch_size), time.monotonic()
    with context.progress.task("sampling", len(batches) * steps, unit="steps") as task:
        for start in batches:
            batch = missing[start : start + config.batch_size]
            drawn = draw(pipeline, batch, config, on_step=task.advance)
            for entry, image in zip(batch, drawn, strict=True):
                with atomic_path(images / entry.name) as temporary:
                    image.save(temporary, format="PNG", pnginfo=_caption(entry))
    return time.monotonic() - clock


def draw(
    pipeline: DiffusionPipeline, batch: Sequence[Sample], config: SampleConfig, *, on_step: Any
) -> list[Image.Image]:
    """Draw one batch; all of an image's noise comes from its own seed, on the CPU, whatever the device."""
    import numpy as np
    import torch

    _, steps, guidance = config.drawn_with()
    options: dict[str, Any] = {}
    if config.resolution is not None:
        options |= {"width": config.resolution, "height": config.resolution}
    if "eta" in inspect.signature(pipeline.__call__).parameters:
        options["eta"] = config.eta

    def stepped(_: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        on_step(1)
        return values

    with torch.inference_mode():
        result = pipeline(
            prompt=[entry.prompt for entry in batch],
            # SDXL has zeros, not the features of an empty text, where there is no negative prompt.
            negative_prompt=[config.negative_prompt] * len(batch) if config.negative_prompt else None,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(entry.seed) for entry in batch],
            output_type="np",
            callback_on_step_end=stepped,
            **options,
        )
    if not np.isfinite(result.images).all():
        raise InputError(
            f"The base model {config.base!r} drew NaN for seed {batch[0].seed}.",
            hint="Its weights are broken, or fp16 overflows: try --precision no or bf16.",
        )
    return list(pipeline.numpy_to_pil(result.images))


def _caption(entry: Sample) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("prompt", entry.prompt)
    info.add_text("seed", str(entry.seed))
    return info


def read_samples(folder: Path) -> Iterator[tuple[Sample, Image.Image]]:
    """The samples of a finished samples folder with their images; raises InputError when it is none."""
    import pyarrow.parquet as pq

    from cdkit.pictures.decoding import open_file

    try:
        rows = pq.read_table(folder / "samples.parquet").to_pylist()
    except OSError as error:
        raise InputError(f"{folder} holds no samples: {error}", hint="Run cdkit sample first.") from error
    for row in rows:
        yield Sample(row["prompt"], row["seed"], Path(row["path"]).name), open_file(folder / row["path"])
