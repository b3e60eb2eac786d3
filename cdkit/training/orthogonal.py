"""Orthogonal keys and values: each concept changes them along directions of its own, which never train.

Po et al. 2024, "Orthogonal Adaptation for Modular Customization of Diffusion Models": the directions are drawn from
one orthonormal basis that all concepts share, so that those of two concepts are nearly at right angles, and their
changes add up without hearing each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

# An eighth of the text's width: eight concepts would fill it if no two shared a direction.
SHARE = 8
_BASIS_SEED = 0


def concept_directions(photos: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """The directions (rank, width) of a concept, orthonormal rows in fp32; which ones follows from its photos.

    photos: uint8 (3, s, s) each. The same photos have the same directions, whatever their folder or token is called.
    """
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(np.ascontiguousarray(photo.numpy()).tobytes())
    chosen = np.random.default_rng(list(digest.digest())).permutation(width)[: max(1, width // SHARE)]
    values = np.random.default_rng(_BASIS_SEED).standard_normal((width, width))
    basis, _ = np.linalg.qr(values)
    return torch.from_numpy(np.ascontiguousarray(basis.T[np.sort(chosen)])).float()


class _AlongDirections(nn.Module):
    """A base matrix (outputs, inputs) plus a trained factor (outputs, rank) times fixed directions (rank, inputs)."""

    def __init__(self, base: torch.Tensor, directions: torch.Tensor) -> None:
        super().__init__()
        self.base: torch.Tensor
        self.directions: torch.Tensor
        self.register_buffer("base", base, persistent=False)
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, factor: torch.Tensor) -> torch.Tensor:
        return self.base + (factor @ self.directions).to(self.base.dtype)


def select_factors(
    unet: Any,
    names: Sequence[str],
    photos: Sequence[Sequence[torch.Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """Move a U-Net to the device in `dtype`, frozen; fp32 factors train, zero now, beside the named matrices.

    photos: of each concept; several concepts have their directions one below the other. Returns the factors and, on
    the CPU, their directions.
    """
    nn.Module.to(unet.requires_grad_(False).eval(), device=device, dtype=dtype)
    parameters = dict(unet.named_parameters())
    by_width: dict[int, torch.Tensor] = {}
    factors, directions = {}, {}
    for name in names:
        base = parameters[name].detach()
        outputs, width = base.shape
        if width not in by_width:
            by_width[width] = torch.cat([concept_directions(entry, width) for entry in photos])
        directions[name] = by_width[width]
        factors[name] = nn.Parameter(torch.zeros(outputs, len(directions[name]), device=device))
        owner, _, part = name.rpartition(".")
        module = unet.get_submodule(owner)
        setattr(module, part, factors[name])
        change = _AlongDirections(base, directions[name].to(device))
        parametrize.register_parametrization(module, part, change, unsafe=True)
    return factors, directions
