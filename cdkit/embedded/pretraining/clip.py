"""Goes on training the small CLIP: both towers together, on captions and pictures of scenes.

What makes a word mean the same anywhere in a sentence: heads that every object of a caption shares read its attributes
from the token that ends its name, and from the token that ends what is said of its place. The U-Net's keys and values
are linear maps that all tokens share, too. The heads are crutches of training and not shipped.

Captions of one object, and random rows of words that are not the world's, keep the embedding that the tower gave them
before, so that thresholds and what the tower learned from captions of photographs stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from cdkit.embedded.grammar import FIELDS, MOST_OBJECTS, OBJECT_FIELDS, SCENE_FIELDS, UNSAID
from cdkit.embedded.models import TEXT_MODEL, TOKEN_TABLE, WIDTH, build_clip, picture_tensors, text_tensors
from cdkit.embedded.pretraining.scenes import Scenes
from cdkit.embedded.pretraining.training import adamw, on_device, to_unit_range
from cdkit.embedded.tokenizer import CONTEXT, END_ID, START_ID, seeded_rows

PICTURE_SIDE = ("vision_model.", "visual_projection.")
BUFFERS = ("position_ids",)
# The heads at the end of a name read no place: its words may follow.
NAME_FIELDS = 5


@dataclass(frozen=True)
class ClipTraining:
    """Batch, rate and the weights of the losses."""

    pairs: int = 256
    captions: int = 2
    random_rows: int = 256
    rate: float = 4e-4
    object_weight: float = 2.0
    attribute_weight: float = 0.5
    keep_weight: float = 10.0


class Heads(nn.Module):
    """A linear classifier for each field."""

    def __init__(self, table: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.sizes = [values for _, values in table]
        self.read = nn.Linear(WIDTH, sum(self.sizes))

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits per field."""
        logits: tuple[torch.Tensor, ...] = torch.split(self.read(states), self.sizes, dim=-1)
        return logits

    def loss(self, states: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the fields that are said; states (..., 128), fields (..., fields)."""
        losses = []
        for index, logits in enumerate(self(states)[: fields.shape[-1]]):
            said = fields[..., index].reshape(-1)
            total = F.cross_entropy(logits.flatten(0, -2), said, ignore_index=UNSAID, reduction="sum")
            losses.append(total / (said != UNSAID).sum().clamp(min=1))
        return torch.stack(losses).mean()


def fits(said: torch.Tensor, truths: torch.Tensor) -> torch.Tensor:
    """Which captions are true of which scenes, bool (captions, scenes): their objects need only some assignment."""
    parts = len(SCENE_FIELDS)
    scene, shown = said[:, None, :parts], truths[None, :, :parts]
    fit = ((scene == UNSAID) | (scene == shown)).all(-1)
    mentioned = said[:, parts:].unflatten(1, (MOST_OBJECTS, -1))[:, :, None, None]
    there = truths[:, parts:].unflatten(1, (MOST_OBJECTS, -1))[None, None]
    # (captions, mentions, scenes, objects)
    agrees = ((mentioned == UNSAID) | (mentioned == there)).all(-1)
    assigned = [
        torch.stack([agrees[:, mention, :, slot] for mention, slot in enumerate(order)]).all(0)
        for order in permutations(range(MOST_OBJECTS))
    ]
    return fit & torch.stack(assigned).any(0)


def shared_positives(logits: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Cross-entropy where each row may have several right columns, each with an equal share."""
    targets = positive.float() / positive.sum(1, keepdim=True).clamp(min=1)
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


def packaged_clip(folder: Any, device: str) -> Any:
    """The CLIP of a weights folder in training mode."""
    model = build_clip()
    model.load_state_dict(text_tensors(folder) | picture_tensors(folder))
    return model.to(device)


def pooled(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All states (n, t, 128), end-of-text states and normalised embeddings (n, 128) of token ids."""
    output = model.text_model(input_ids=ids)
    return (
        output.last_hidden_state,
        output.pooler_output,
        F.normalize(model.text_projection(output.pooler_output), dim=-1),
    )


def encode_pictures(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled states and normalised embeddings of pictures in [-1, 1], each (n, 128)."""
    states = model.vision_model(pixel_values=pixels).pooler_output
    return states, F.normalize(model.visual_projection(states), dim=-1)


class ClipTrainee:
    """Both towers, their heads, and the towers before as what embeddings are kept to."""

    # Masks in the library's text tower are made with a look at the device.
    graphed = False

    def __init__(self, scenes: Scenes, held_out: Scenes, plan: ClipTraining, folder: Any, device: str) -> None:
        self.plan, self.device = plan, device
        self.clip, self.before = packaged_clip(folder, device), packaged_clip(folder, device).requires_grad_(False)
        self.clip.requires_grad_(True)
        self.object_heads, self.caption_heads, self.picture_heads = (
            Heads(table).to(device) for table in (OBJECT_FIELDS, FIELDS, FIELDS)
        )
        self.heads = nn.ModuleList([self.object_heads, self.caption_heads, self.picture_heads])
        self.scenes = {name: on_device(getattr(scenes, name), device) for name in ("pictures", "truths", "tokens")}
        self.scenes |= {name: on_device(getattr(scenes, name), device).long() for name in ("said", "ends")}
        self.held_out = held_out
        table = self.clip.text_model.embeddings.token_embedding.weight
        trained = torch.unique(self.scenes["tokens"]).long()
        others = torch.from_numpy(changed_rows(table.detach().cpu())).to(device)
        self.spare = others[~torch.isin(others, trained)]
        rest = [parameter for parameter in self.clip.parameters() if parameter is not table]
        groups = [
            {"params": [*rest, *self.heads.parameters()], "weight_decay": 0.02},
            {"params": [table], "weight_decay": 0.0},
        ]
        self.optimizer = adamw(groups, device, second=0.98, decay=0.02)
        # Rows of words that are not the world's stay as they are.
        self.moving = torch.zeros(len(table), 1, device=device)
        self.moving[trained] = 1

    def step(self) -> dict[str, torch.Tensor]:
        """One step over near misses, two captions of each scene, and random rows of other words."""
        plan, count = self.plan, len(self.scenes["truths"])
        firsts = torch.randint(count // 2, (plan.pairs,), device=self.device) * 2
        rows = torch.stack([firsts, firsts + 1], dim=1).reshape(-1)
        losses = self.losses(rows)
        total = (
            losses["match"]
            + plan.object_weight * losses["objects"]
            + plan.attribute_weight * (losses["captions"] + losses["pictures"])
            + plan.keep_weight * (losses["kept"] + losses["others_kept"])
        )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        table = self.clip.text_model.embeddings.token_embedding.weight
        table.grad.mul_(self.moving)
        nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def losses(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The losses of some scenes, with captions drawn for them."""
        plan = self.plan
        captions = torch.stack(
            [
                torch.randint(self.scenes["tokens"].shape[1], (len(rows),), device=self.device)
                for _ in range(plan.captions)
            ],
            dim=1,
        )
        tokens, said, ends = (
            self.scenes[name][rows[:, None], captions].flatten(0, 1) for name in ("tokens", "said", "ends")
        )
        truths = self.scenes["truths"][rows].long()
        states, finals, texts = pooled(self.clip, tokens.long())
        picture_states, pictures = encode_pictures(self.clip, to_unit_range(self.scenes["pictures"][rows]))
        positive, scale = fits(said, truths), self.clip.logit_scale.exp().clamp(max=60)
        logits = scale * texts @ pictures.T
        match = (shared_positives(logits, positive) + shared_positives(logits.T, positive.T)) / 2
        return {
            "match": match,
            "objects": self.object_loss(states, said, ends),
            "captions": self.caption_heads.loss(finals, said),
            "pictures": self.picture_heads.loss(picture_states, truths),
            **self.kept_losses(tokens.long(), texts, said[:, 0] == 0),
        }

    def object_loss(self, states: torch.Tensor, said: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """The shared heads' loss at the ends of names and of all that is said of an object."""
        mentions = said[:, len(SCENE_FIELDS) :].unflatten(1, (MOST_OBJECTS, -1))
        rows = torch.arange(len(states), device=states.device)[:, None]
        heads = self.object_heads
        at_name = heads.loss(states[rows, ends[..., 0]], mentions[..., :NAME_FIELDS])
        return (at_name + heads.loss(states[rows, ends[..., 1]], mentions)) / 2

    def kept_losses(self, tokens: torch.Tensor, texts: torch.Tensor, single: torch.Tensor) -> dict[str, torch.Tensor]:
        """1 − cosine with the embeddings before: of captions of one object, and of random rows of other words."""
        with torch.no_grad():
            before = pooled(self.before, tokens)[2]
        kept = ((1 - (texts * before).sum(1)) * single).sum() / single.sum().clamp(min=1)
        if not len(self.spare) or not self.plan.random_rows:
            return {"kept": kept, "others_kept": torch.zeros_like(kept)}
        ids = self.spare[torch.randint(len(self.spare), (self.plan.random_rows, 16), device=self.device)]
        world = tokens[torch.randint(len(tokens), (self.plan.random_rows,), device=self.device), 1:17]
        ids = torch.where(torch.rand(ids.shape, device=self.device) < 0.3, world, ids)
        lengths = torch.randint(4, 17, (len(ids), 1), device=self.device)
        ids = torch.where(torch.arange(16, device=self.device) < lengths, ids, END_ID)
        ids = F.pad(F.pad(ids, (1, 0), value=START_ID), (0, 1), value=END_ID)
        with torch.no_grad():
            wanted = pooled(self.before, ids)[2]
        return {"kept": kept, "others_kept": 1 - (pooled(self.clip, ids)[2] * wanted).sum(1).mean()}

    def after_step(self, step: int) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """The towers and their heads."""
        return {"clip": self.clip.state_dict(), "heads": self.heads.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes both."""
        self.clip.load_state_dict(state["clip"])
        self.heads.load_state_dict(state["heads"])

    @torch.no_grad()
    def checked(self) -> dict[str, float]:
        """Shares of said fields that the shared heads read right on held-out captions, per place of mention."""
        tokens = on_device(self.held_out.tokens[:, 0], self.device).long()
        said, ends = (on_device(array[:, 0], self.device).long() for array in (self.held_out.said, self.held_out.ends))
        states = pooled(self.clip, tokens)[0]
        mentions = said[:, len(SCENE_FIELDS) :].unflatten(1, (MOST_OBJECTS, -1))
        rows = torch.arange(len(states), device=self.device)[:, None]
        guesses = [logits.argmax(-1) for logits in self.object_heads(states[rows, ends[..., 1]])]
        right = torch.stack(guesses, dim=-1) == mentions
        figures = {}
        for place in range(MOST_OBJECTS):
            told = mentions[:, place] != UNSAID
            figures[f"mention_{place + 1}"] = float(right[:, place][told].float().mean()) if told.any() else 1.0
        return figures


def changed_rows(table: torch.Tensor) -> Any:
    """The ids of tokens whose rows some training changed, sorted."""
    import numpy as np

    return np.flatnonzero((table.half() != torch.from_numpy(seeded_rows(WIDTH)).half()).any(dim=1).numpy())


def split_clip(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The text side, its token table as trained rows and their ids, and the picture side: the package's two files."""
    table = state[TEXT_MODEL + TOKEN_TABLE].cpu()
    ids = torch.from_numpy(changed_rows(table))
    text = {"token_ids": ids.int(), "token_rows": table[ids]}
    pictures: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name != TEXT_MODEL + TOKEN_TABLE and not name.endswith(BUFFERS):
            (pictures if name.startswith(PICTURE_SIDE) else text)[name] = tensor
    return text, pictures


@torch.no_grad()
def caption_features(clip: Any, tokens: torch.Tensor, batch: int = 2048) -> torch.Tensor:
    """What the U-Net attends to, as a pipeline pads captions: (n, 77, 128) in bfloat16, on the tokens' device."""
    ids = F.pad(tokens.long(), (0, CONTEXT - tokens.shape[1]), value=END_ID)
    features = torch.empty(len(ids), CONTEXT, WIDTH, dtype=torch.bfloat16, device=tokens.device)
    for start in range(0, len(ids), batch):
        features[start : start + batch] = pooled(clip, ids[start : start + batch])[0]
    return features
