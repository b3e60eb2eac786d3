"""Alignment scores from embeddings: how far images show what their prompts say, and what a concept's photos show.

Every function takes rows of norm 1 (float [n, dimension]) and gives one float64 per sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLIP_SCORE_WEIGHT = 2.5


def text_alignment(images: Tensor, texts: Tensor) -> Tensor:
    """Cosine of each image with the text of its own prompt: images and texts [n, d], to [n] in [-1, 1]."""
    return (images.double() * texts.double()).sum(dim=1)


def clip_score(cosines: Tensor) -> Tensor:
    """CLIPScore (Hessel et al. 2021, section 3; CustomConcept101's text alignment): 2.5 · max(cosine, 0)."""
    return CLIP_SCORE_WEIGHT * cosines.double().clamp(min=0)


def image_alignment(images: Tensor, photos: Tensor) -> Tensor:
    """Mean cosine of each image with every photo of the concept (Custom Diffusion, appendix D): [n, d], [m, d] to [n].

    Its mean over the samples is the mean over all pairs of sample and photo.
    """
    return (images.double() @ photos.double().T).mean(dim=1)


def nearest_photo(images: Tensor, photos: Tensor) -> Tensor:
    """Cosine of each image with the training photo it is most like, [n]: near 1 means that a photo was copied."""
    return (images.double() @ photos.double().T).max(dim=1).values


def drift(images: Tensor, before: Tensor) -> Tensor:
    """1 - cosine of each image with the base model's image of the same prompt and seed: 0 is no change, [n]."""
    return 1 - text_alignment(images, before)


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(values).all())
