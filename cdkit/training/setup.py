"""From a plan to everything the loop needs: the model loaded, its parts frozen, what never changes computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cdkit.core.protocols import Context, Task
from cdkit.deltas.base_model import compute_type
from cdkit.deltas.methods import selected_names
from cdkit.deltas.text_features import text_towers
from cdkit.pictures.picture import Picture
from cdkit.sampling.drawing import too_long
from cdkit.training.augmentation import ALL_WORDS, Placement, place, with_words
from cdkit.training.batches import Batches, Frame, Pictures
from cdkit.training.denoising import Conditioning, Denoising
from cdkit.training.latents import PictureEncoder
from cdkit.training.photos import Square, centre_square
from cdkit.training.plan import Plan, PlannedConcept
from cdkit.training.trainables import Trainables, detach_first_token, install_tokens, move, select_weights

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cdkit.training.config import TrainConfig


@dataclass(frozen=True)
class Ready:
    """A pipeline about to be trained."""

    pipeline: DiffusionPipeline
    trainables: Trainables
    denoising: Denoising
    batches: Batches


def set_up(
    config: TrainConfig,
    plan: Plan,
    pipeline: DiffusionPipeline,
    device: torch.device,
    samples_per_step: int,
    context: Context,
) -> Ready:
    """Take an fp32 pipeline on the CPU apart: select, freeze, cast, move, and encode what never changes.

    Raises ConfigError when the method does not fit the model.
    """
    dtype = compute_type(config.precision)
    names = selected_names(pipeline.unet, plan.method)
    rows = install_tokens(pipeline, plan.tokens) if plan.tokens else {}
    weights, base = select_weights(pipeline.unet, names, device=device, dtype=dtype)
    for tower in text_towers(pipeline):
        move(tower.model.requires_grad_(False).eval(), device, dtype)
    for module in rows.values():
        module.rows.data = module.rows.data.float()
        module.rows.requires_grad_(True)
    if plan.method.detaches_first_token:
        detach_first_token(pipeline.unet)
    if config.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    pipeline.unet.to(memory_format=torch.channels_last)
    encoder = PictureEncoder(pipeline.vae, device=device, dtype=dtype)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        batches = _batches(config, plan, encoder, samples_per_step, context)
        conditioning = Conditioning(text_towers(pipeline), rows)
        conditioning.prepare(_all_prompts(plan, augmented=config.recipe().augmentation))
    for prompt in too_long(plan.prompts, pipeline.tokenizer):
        context.progress.note(f"Longer than the text encoder's context, its end is not seen: {prompt[:60]}…")
    denoising = Denoising.of(pipeline, conditioning, device)
    batches.timesteps = len(denoising.alphas_cumprod)
    if config.compile:
        pipeline.unet.compile()
    return Ready(pipeline, Trainables(weights, base, rows), denoising, batches)


def _all_prompts(plan: Plan, *, augmented: bool) -> list[str]:
    words = ALL_WORDS if augmented else ("",)
    prompts = [with_words(word, caption) for caption in plan.prompts for word in words]
    return [*prompts, *(caption for planned in plan.concepts for caption in planned.regularization_captions)]


def _batches(
    config: TrainConfig, plan: Plan, encoder: PictureEncoder, samples_per_step: int, context: Context
) -> Batches:
    recipe = config.recipe()
    targets = [_targets(planned, plan.resolution, encoder, config) for planned in plan.concepts]
    number = sum(len(planned.regularization) for planned in plan.concepts)
    with context.progress.task("encoding regularization images", number, unit="images") as task:
        images = [_regularization(planned, plan.resolution, encoder, config.flip, task) for planned in plan.concepts]
    if not recipe.augmentation:
        encoder.release()
    return Batches(
        targets=targets,
        regularization=images,
        encoder=encoder,
        resolution=plan.resolution,
        timesteps=0,
        samples_per_step=samples_per_step,
        seed=config.seed,
        flip=config.flip,
        prior_weight=recipe.prior_weight,
    )


def _targets(planned: PlannedConcept, resolution: int, encoder: PictureEncoder, config: TrainConfig) -> Pictures:
    frames = [square.frame for square in planned.squares]
    if config.recipe().augmentation:
        squares = [square.pixels.to(encoder.device) for square in planned.squares]
        return Pictures(planned.captions, frames, squares=squares)
    pixels = (_whole(square, resolution) for square in planned.squares)
    return Pictures(planned.captions, frames, moments=encoder.encode_all(pixels, flips=config.flip))


def _regularization(
    planned: PlannedConcept, resolution: int, encoder: PictureEncoder, flip: bool, task: Task
) -> Pictures | None:
    if not planned.regularization:
        return None
    frames: list[Frame] = []
    pixels = _decoded(planned.regularization, resolution, frames, task)
    moments = encoder.encode_all(pixels, flips=flip)
    return Pictures(planned.regularization_captions, frames, moments=moments)


def _decoded(pictures: Sequence[Picture], resolution: int, frames: list[Frame], task: Task) -> Iterator[torch.Tensor]:
    """The pictures' pixels one by one, never all at once; their frames are added to `frames`."""
    for picture in pictures:
        square = centre_square(picture.open(), resolution, least=resolution)
        frames.append(square.frame)
        yield _whole(square, resolution)
        task.advance()


def _whole(square: Square, resolution: int) -> torch.Tensor:
    return place(square.pixels, Placement(resolution, 0, 0), resolution)
