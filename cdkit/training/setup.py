"""The setup of a training: from a plan and a loaded model to frozen parts, and what never changes computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cdkit.core.protocols import Context
from cdkit.deltas.base_model import compute_type
from cdkit.deltas.families.table import denoiser_of, family_of
from cdkit.deltas.gating import check_gated, word_ids
from cdkit.deltas.methods import selected_names
from cdkit.deltas.text_features import text_towers
from cdkit.encoders.cpu_products import use_fast_products
from cdkit.sampling.drawing import too_long
from cdkit.training.augmentation import ALL_WORDS, with_words
from cdkit.training.batches import Batches
from cdkit.training.denoising import Conditioning, Denoising
from cdkit.training.latents import PictureEncoder
from cdkit.training.orthogonal import select_factors
from cdkit.training.plan import Plan
from cdkit.training.trainables import (
    RowsBesideTable,
    Trainables,
    detach_first_token,
    install_tokens,
    select_weights,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cdkit.deltas.formats.gated_pipeline import Gate
    from cdkit.training.config import TrainConfig


@dataclass(frozen=True)
class Setup:
    """A pipeline about to be trained."""

    pipeline: DiffusionPipeline
    trainables: Trainables
    denoising: Denoising
    batches: Batches
    gate: Gate | None = None


def set_up(
    config: TrainConfig,
    plan: Plan,
    pipeline: DiffusionPipeline,
    device: torch.device,
    context: Context,
) -> Setup:
    """Take an fp32 pipeline on the CPU apart: select, freeze, cast, move, and encode what never changes.

    Raises ConfigError when the method does not fit the model.
    """
    dtype = compute_type(config.precision)
    family, denoiser = family_of(pipeline), denoiser_of(pipeline)
    names = selected_names(denoiser, plan.method, config.blocks)
    rows = install_tokens(pipeline, plan.tokens) if plan.tokens else {}
    trainables = _trainables(plan, denoiser, names, rows, device, dtype)
    starts = {tower: module.rows.detach().clone() for tower, module in rows.items()}
    for tower in text_towers(pipeline):
        tower.model.requires_grad_(False).eval().to(device=device, dtype=dtype)
    for name, module in rows.items():
        # From the exact values, which moving the tower has rounded.
        module.rows.data = starts[name].to(device)
        module.rows.requires_grad_(True)
    if plan.method.detaches_first_token and family.starts_alike:
        detach_first_token(denoiser)
    if config.gradient_checkpointing:
        # Nothing in the denoiser is random in training, and asking a GPU for its generator's state makes it wait.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        denoiser.enable_gradient_checkpointing(again)
    if device.type == "cpu" and family.denoiser == "unet":
        # On a GPU every group norm would turn the layout round.
        denoiser.to(memory_format=torch.channels_last)
    if device.type == "cpu" and dtype == torch.float32:
        for part in (denoiser, pipeline.vae, *(tower.model for tower in text_towers(pipeline))):
            use_fast_products(part)
    encoder = PictureEncoder(pipeline.vae, family, device=device, dtype=dtype)
    conditioning = Conditioning(family, text_towers(pipeline), rows)
    cells = plan.resolution // encoder.factor
    gate = _gate(plan, pipeline, trainables)
    denoising = Denoising.of(pipeline, conditioning, cells, dtype, trainables if config.distils else None, gate)
    batches = _batches(config, plan, encoder, len(denoising.schedule.table), context)
    conditioning.prepare(_all_prompts(plan, augmented=config.recipe().augmentation))
    for prompt in too_long(plan.prompts, family.words_of(text_towers(pipeline)).tokenizer):
        context.progress.note(f"Longer than the text encoder's context, its end is not seen: {prompt[:60]}…")
    if config.compile:
        denoiser.compile()
    return Setup(pipeline, trainables, denoising, batches, gate)


def _trainables(
    plan: Plan,
    denoiser: Any,
    names: Sequence[str],
    rows: Mapping[str, RowsBesideTable],
    device: torch.device,
    dtype: torch.dtype,
) -> Trainables:
    """Freeze the denoiser and move it to the device; what the plan's method trains of it, with the rows beside."""
    if plan.method.change == "gated":
        shapes = {name: value.shape for name, value in denoiser.named_parameters() if name in set(names)}
        nn.Module.to(denoiser.requires_grad_(False).eval(), device=device, dtype=dtype)
        added = {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}
        return Trainables(added, {name: torch.zeros(shape) for name, shape in shapes.items()}, rows)
    if plan.method.change == "orthogonal":
        photos = [[square.pixels for square in planned.squares] for planned in plan.concepts]
        factors, directions = select_factors(denoiser, names, photos, device=device, dtype=dtype)
        base = {name: torch.zeros(factor.shape) for name, factor in factors.items()}
        return Trainables(factors, base, rows, directions)
    weights, base = select_weights(denoiser, names, device=device, dtype=dtype)
    return Trainables(weights, base, rows)


def _gate(plan: Plan, pipeline: DiffusionPipeline, trainables: Trainables) -> Gate | None:
    """What adds the trained changes where the concepts' words stand; None for a method that changes weights."""
    if plan.method.change != "gated":
        return None
    from cdkit.deltas.formats.gated_pipeline import Gate

    check_gated(pipeline)
    gate = Gate(word_ids(text_towers(pipeline)[0], plan.subjects), trainables.weights)
    gate.attach(pipeline.unet)
    return gate


def _all_prompts(plan: Plan, *, augmented: bool) -> list[str]:
    words = ALL_WORDS if augmented else ("",)
    of_class = [form for planned in plan.concepts for forms in planned.class_captions for form in forms]
    captions = dict.fromkeys([*plan.prompts, *of_class])
    prompts = [with_words(word, caption) for caption in captions for word in words]
    return [*prompts, *(caption for planned in plan.concepts for caption in planned.regularization_captions)]


def _batches(config: TrainConfig, plan: Plan, encoder: PictureEncoder, timesteps: int, context: Context) -> Batches:
    recipe = config.recipe()
    targets = [
        encoder.photos(planned, plan.resolution, augmented=recipe.augmentation, flips=config.flip)
        for planned in plan.concepts
    ]
    number = sum(len(planned.regularization) for planned in plan.concepts)
    with context.progress.task("encoding regularization images", number, unit="images") as task:
        images = [
            encoder.regularization(planned, plan.resolution, flips=config.flip, task=task) for planned in plan.concepts
        ]
    if not recipe.augmentation:
        encoder.release()
    return Batches(
        targets=targets,
        regularization=images,
        encoder=encoder,
        resolution=plan.resolution,
        timesteps=timesteps,
        samples_per_step=recipe.batch_size * config.gradient_accumulation * config.processes,
        seed=config.seed,
        steps=recipe.steps,
        flip=config.flip,
        prior_weight=recipe.prior_weight,
        distils=config.distils,
    )
