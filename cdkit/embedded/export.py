"""Writes what training left in the work folder as the weights that ship, with hashes, threshold and figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdkit.embedded import weight_files
from cdkit.embedded.architecture import WIDTH
from cdkit.embedded.autoencoder_training import finished_autoencoder, reconstruction_quality
from cdkit.embedded.calibration import naming_accuracy, separation
from cdkit.embedded.clip_models import encode_pictures, encode_tokens
from cdkit.embedded.clip_training import PICTURE_PHASE, TEXT_PHASE, trained_clip
from cdkit.embedded.scene_store import SceneStore, token_rows
from cdkit.embedded.tokens import seeded_rows
from cdkit.embedded.training_state import to_unit_range
from cdkit.embedded.unet_training import trained_unet

BUFFERS = ("position_ids",)


def export_weights(store: SceneStore, held_out: SceneStore, work: Path, weights: Path, device: str) -> None:
    """Writes all files; raises InputError when a part has not run. The picture tower may be the text phase's."""
    phase = PICTURE_PHASE if (work / PICTURE_PHASE).is_file() else TEXT_PHASE
    clip = trained_clip(work, phase, device).clip
    unet, autoencoder = trained_unet(work, device), finished_autoencoder(store, work, device)
    quality = reconstruction_quality(autoencoder, held_out.pictures[:512], device)
    figures = {"autoencoder_psnr": round(quality, 2)} | clip_figures(clip, device)
    text, pictures = split_clip(clip.state_dict())
    weight_files.write_tensors(weight_files.TEXT_ENCODER, text, weights)
    weight_files.write_tensors(weight_files.PICTURE_ENCODER, pictures, weights)
    weight_files.write_tensors(weight_files.AUTOENCODER, autoencoder.state_dict(), weights)
    weight_files.write_tensors(weight_files.UNET, unet.state_dict(), weights)
    weight_files.update_record(figures, weights)


def split_clip(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The text side, its token table as trained rows and their ids, and the picture side."""
    table = "text_model.embeddings.token_embedding."
    ids, rows = state[f"{table}token_ids"].cpu(), state[f"{table}weight"].cpu().half()
    # A word of the real captions that no batch drew is still as seeded: it need not be stored.
    changed = (rows != torch.from_numpy(seeded_rows(WIDTH)).half()[ids]).any(dim=1)
    text = {"token_ids": ids[changed].int(), "token_rows": rows[changed]}
    pictures: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(table) or name.endswith(BUFFERS):
            continue
        (pictures if name.startswith(("vision_model.", "visual_projection.")) else text)[name] = tensor
    return text, pictures


@torch.no_grad()
def clip_figures(clip: Any, device: str) -> dict[str, Any]:
    """The threshold with its separation, and zero-shot accuracy."""

    def embed(texts: list[str]) -> torch.Tensor:
        return encode_tokens(clip, token_rows(texts), device)[1]

    def embed_pictures(pictures: np.ndarray) -> torch.Tensor:
        return encode_pictures(clip, to_unit_range(pictures, device))[1]

    parted = dataclasses.asdict(separation(embed))
    named = naming_accuracy(embed, embed_pictures)
    threshold = parted.pop("threshold")
    return {
        "threshold": threshold,
        "threshold_separation": {name: round(value, 4) for name, value in parted.items()},
        "zero_shot": {name: round(value, 4) for name, value in named.items()},
    }
