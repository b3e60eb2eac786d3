"""What the CLIP phases train: the two towers with the used rows of the token table, and the crutches of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cdkit.embedded.grammar import FIELDS, UNSAID
from cdkit.embedded.models import WIDTH, build_clip
from cdkit.embedded.tokenizer import END_ID, VOCABULARY_SIZE, seeded_rows

TOKEN_TABLE = "text_model.embeddings.token_embedding"


class UsedRows(nn.Module):
    """The token table while training: only the rows some caption uses, as the rest would cost time for nothing."""

    places: torch.Tensor

    def __init__(self, token_ids: np.ndarray) -> None:
        super().__init__()
        places = torch.zeros(VOCABULARY_SIZE, dtype=torch.long)
        places[torch.from_numpy(token_ids.astype(np.int64))] = torch.arange(len(token_ids))
        self.register_buffer("places", places)
        self.register_buffer("token_ids", torch.from_numpy(token_ids.astype(np.int64)))
        self.weight = nn.Parameter(torch.from_numpy(seeded_rows(WIDTH)[token_ids]))

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of used tokens."""
        return F.embedding(self.places[token_ids], self.weight)


def new_clip(seed: int, token_ids: np.ndarray) -> Any:
    """An untrained CLIP with the used rows of the token table, which follow the seed rule."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_clip()
    embeddings = model.text_model.embeddings
    embeddings.token_embedding = UsedRows(token_ids)
    with torch.no_grad():
        embeddings.position_embedding.weight.normal_(0, 0.08, generator=torch.Generator().manual_seed(seed))
    return model


class AttributeHeads(nn.Module):
    """One linear classifier per field on a tower's pooled state."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, values) for _, values in FIELDS)

    def loss(self, states: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the fields that are said."""
        losses = []
        for index, head in enumerate(self.heads):
            said = fields[:, index] != UNSAID
            if said.any():
                losses.append(F.cross_entropy(head(states[said]), fields[said, index]))
        return torch.stack(losses).mean()

    def correct(self, states: torch.Tensor, fields: torch.Tensor) -> float:
        """Share of said fields read right."""
        guesses = torch.stack([head(states).argmax(1) for head in self.heads], dim=1)
        said = fields != UNSAID
        return float((guesses == fields)[said].float().mean())


class SceneTower(nn.Module):
    """Scene fields to a normalised embedding: what a perfect picture tower could know."""

    def __init__(self) -> None:
        super().__init__()
        values = sum(count + 1 for _, count in FIELDS)
        self.layers = nn.Sequential(
            nn.Linear(values, 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        """int64 (n, fields) to (n, 128)."""
        parts = [F.one_hot(fields[:, index] + 1, count + 1) for index, (_, count) in enumerate(FIELDS)]
        return F.normalize(self.layers(torch.cat(parts, dim=1).float()), dim=-1)


def encode_tokens(model: Any, tokens: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """End-of-text states and normalised embeddings of captions, each (n, 128); padding is trimmed away."""
    longest = int((tokens != END_ID).sum(1).max()) + 1
    ids = torch.from_numpy(tokens[:, :longest].astype(np.int64)).to(device)
    states = model.text_model(input_ids=ids).pooler_output
    return states, F.normalize(model.text_projection(states), dim=-1)


def encode_pictures(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled states and normalised embeddings of pictures in [-1, 1], each (n, 128)."""
    states = model.vision_model(pixel_values=pixels).pooler_output
    return states, F.normalize(model.visual_projection(states), dim=-1)


@dataclass
class ClipModels:
    """Everything the two CLIP phases train."""

    clip: Any
    text_heads: AttributeHeads
    picture_heads: AttributeHeads
    scene_tower: SceneTower
    real_scale: nn.Parameter

    @classmethod
    def untrained(cls, seed: int, token_ids: np.ndarray, device: str) -> ClipModels:
        """Fresh ones."""
        clip = new_clip(seed, token_ids)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            heads, picture_heads, tower = AttributeHeads(), AttributeHeads(), SceneTower()
        scale = nn.Parameter(torch.tensor(2.3, device=device))
        return cls(clip.to(device), heads.to(device), picture_heads.to(device), tower.to(device), scale)

    def modules(self) -> dict[str, nn.Module]:
        """For checkpoints and optimizers."""
        return {
            "clip": self.clip,
            "text_heads": self.text_heads,
            "picture_heads": self.picture_heads,
            "scene_tower": self.scene_tower,
        }


def snapshot(models: ClipModels, optimizer: torch.optim.Optimizer, step: int) -> dict[str, Any]:
    """What a checkpoint holds."""
    modules = {name: module.state_dict() for name, module in models.modules().items()}
    return modules | {"real_scale": models.real_scale.data, "optimizer": optimizer.state_dict(), "step": step}


def restore(models: ClipModels, optimizer: torch.optim.Optimizer | None, state: dict[str, Any]) -> int:
    """Loads a checkpoint; returns its step."""
    for name, module in models.modules().items():
        module.load_state_dict(state[name])
    models.real_scale.data.copy_(state["real_scale"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
