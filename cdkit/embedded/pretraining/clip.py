"""Trains the small CLIP in two phases: the text tower first, then the picture tower against the frozen text tower.

In the first phase a small tower that reads a scene's attributes stands in for the picture tower: it costs nothing, and
the captions find the same geometry. The attribute heads and that tower are crutches of training and not shipped: they
make whose colour is whose linearly readable from the end-of-text state, which a purely contrastive text tower does not
offer and the U-Net needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cdkit.core.errors import InputError
from cdkit.embedded.grammar import UNSAID
from cdkit.embedded.pretraining.clip_models import (
    TOKEN_TABLE,
    ClipModels,
    encode_pictures,
    encode_tokens,
    restore,
    snapshot,
)
from cdkit.embedded.pretraining.scene_store import (
    Checkpoint,
    SceneStore,
    TrainingLog,
    learning_rate,
    set_learning_rate,
    step_generators,
    to_unit_range,
)
from cdkit.embedded.tokenizer import END_ID, START_ID

TEXT_PHASE, PICTURE_PHASE = "clip.pt", "clip-pictures.pt"


@dataclass(frozen=True)
class ClipTraining:
    """Length and batch of one CLIP phase: the text tower, or (`pictures`) the picture tower."""

    steps: int = 750
    pairs: int = 20
    captions: int = 2
    real_captions: int = 16
    rate: float = 1e-3
    pictures: bool = False
    attribute_weight: float = 1.0
    seed: int = 1
    every: int = 50


def used_token_ids(store: SceneStore, real: np.ndarray) -> np.ndarray:
    """Every token id that training shows, sorted."""
    return np.unique(np.concatenate([np.unique(store.tokens), np.unique(real), [START_ID, END_ID]])).astype(np.int64)


def fits(caption_fields: torch.Tensor, scene_fields: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which scenes, bool (captions, scenes)."""
    said = caption_fields[:, None, :]
    return ((said == UNSAID) | (said == scene_fields[None])).all(-1)


def shared_positives(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Cross-entropy where each row may have several right columns, each with an equal share."""
    targets = positive.float() / positive.sum(1, keepdim=True).clamp(min=1)
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


@dataclass(frozen=True)
class ClipBatch:
    """Scenes with some captions each, and pairs of real captions of one photo (possibly none)."""

    pictures: np.ndarray
    scene_fields: np.ndarray
    tokens: np.ndarray
    caption_fields: np.ndarray
    real: np.ndarray


def clip_batch(store: SceneStore, real: np.ndarray, plan: ClipTraining, rng: np.random.Generator) -> ClipBatch:
    """A batch; `real` is (photos, captions of a photo, 40) or empty."""
    rows = store.pair_rows(rng.integers(store.pairs, size=plan.pairs))
    captions = np.stack([rng.permutation(store.tokens.shape[1])[: plan.captions] for _ in rows])
    tokens, said = store.tokens[rows[:, None], captions], store.caption_fields[rows[:, None], captions]
    pairs = np.zeros((0, 2, store.tokens.shape[2]), np.uint16)
    if len(real) and plan.real_captions:
        photos = rng.choice(len(real), size=min(plan.real_captions, len(real)), replace=False)
        two = np.stack([rng.permutation(real.shape[1])[:2] for _ in photos])
        pairs = real[photos[:, None], two]
    return ClipBatch(
        store.pictures[rows],
        store.scene_fields[rows],
        tokens.reshape(-1, tokens.shape[-1]),
        said.reshape(-1, said.shape[-1]),
        pairs,
    )


def clip_loss(models: ClipModels, batch: ClipBatch, plan: ClipTraining, device: str) -> dict[str, torch.Tensor]:
    """The step's losses by name; `total` is what is minimised."""
    clip = models.clip
    scene_fields = torch.from_numpy(batch.scene_fields.astype(np.int64)).to(device)
    caption_fields = torch.from_numpy(batch.caption_fields.astype(np.int64)).to(device)
    with torch.set_grad_enabled(not plan.pictures):
        tokens = np.concatenate([batch.tokens, batch.real[:, 0], batch.real[:, 1]])
        states, texts = encode_tokens(clip, tokens, device)
    world, first, second = texts.split([len(batch.tokens), len(batch.real), len(batch.real)])
    losses = {}
    if plan.pictures:
        picture_states, scenes = encode_pictures(clip, to_unit_range(batch.pictures, device))
        losses["attributes"] = models.picture_heads.loss(picture_states, scene_fields)
    else:
        scenes = models.scene_tower(scene_fields)
        losses["attributes"] = models.text_heads.loss(states[: len(world)], caption_fields)
    true = fits(caption_fields, scene_fields)
    scale = clip.logit_scale.exp().clamp(max=60)
    nothing = torch.zeros(len(scenes), 2 * len(batch.real), dtype=torch.bool, device=device)
    by_scene = shared_positives(scale * scenes @ texts.T, torch.cat([true.T, nothing], dim=1))
    by_caption = shared_positives(scale * world @ scenes.T, true)
    losses["match"] = (by_scene + by_caption) / 2
    total = losses["match"] + plan.attribute_weight * losses["attributes"]
    if len(first) and not plan.pictures:
        losses["real"] = real_caption_loss(world, first, second, models.real_scale)
        total = total + losses["real"] / 2
    return losses | {"total": total}


def real_caption_loss(
    world: torch.Tensor, first: torch.Tensor, second: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Captions of one photo find each other among other photos' captions and the world's."""
    right = torch.arange(len(first), device=first.device)
    sharp = scale.exp().clamp(max=60)
    there = F.cross_entropy(sharp * first @ torch.cat([second, world]).T, right)
    back = F.cross_entropy(sharp * second @ torch.cat([first, world]).T, right)
    return (there + back) / 2


def clip_optimizer(models: ClipModels, rate: float, pictures: bool) -> torch.optim.Optimizer:
    """AdamW; no decay on the token table, so that rare words keep their length."""
    if pictures:
        towers = [models.clip.vision_model, models.clip.visual_projection, models.picture_heads]
        parameters = [parameter for tower in towers for parameter in tower.parameters()]
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
    table = models.clip.text_model.embeddings.token_embedding.weight
    trained = [models.clip.text_model, models.clip.text_projection, models.text_heads, models.scene_tower]
    others = [p for module in trained for p in module.parameters() if p is not table] + [models.clip.logit_scale]
    groups = [
        {"params": others, "weight_decay": 0.02, "scale": 1.0},
        {"params": [table, models.real_scale], "weight_decay": 0.0, "scale": 2.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def train_clip(
    store: SceneStore, real: np.ndarray, plan: ClipTraining, work: Path, log: TrainingLog, device: str
) -> ClipModels:
    """Trains one phase, or goes on from its checkpoint; the picture phase starts from the text phase's."""
    checkpoint = Checkpoint(work / (PICTURE_PHASE if plan.pictures else TEXT_PHASE))
    if plan.pictures:
        models = trained_clip(work, TEXT_PHASE, device)
    else:
        models = ClipModels.untrained(plan.seed, used_token_ids(store, real), device)
    optimizer = clip_optimizer(models, plan.rate, plan.pictures)
    start = 0
    if (state := checkpoint.load(device)) is not None:
        start = restore(models, optimizer, state)
    name = "pictures" if plan.pictures else "clip"
    for step in range(start, plan.steps):
        rng, _ = step_generators(plan.seed + 1000 * plan.pictures, step, device)
        set_learning_rate(optimizer, learning_rate(step, plan.steps, plan.rate))
        losses = clip_loss(models, clip_batch(store, real, plan, rng), plan, device)
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
            log.write(name, step + 1, **{loss: float(value.detach()) for loss, value in losses.items()})
            checkpoint.save(snapshot(models, optimizer, step + 1))
    models.clip.eval()
    return models


def trained_clip(work: Path, phase: str, device: str) -> ClipModels:
    """What a phase left in the work folder; raises InputError when it has not run."""
    state = Checkpoint(work / phase).load(device)
    if state is None:
        raise InputError(f"{work / phase}: no such checkpoint", hint="Run the part `clip` first.")
    models = ClipModels.untrained(0, state["clip"][f"{TOKEN_TABLE}.token_ids"].cpu().numpy(), device)
    restore(models, None, state)
    models.clip.eval()
    return models
