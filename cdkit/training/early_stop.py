"""Early stop: whether a training only copies its photos any more, told by samples drawn at every tenth of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cdkit.pictures.embedding import nearest_photo

if TYPE_CHECKING:
    from PIL import Image

    from cdkit.core.protocols import ImageEncoder
    from cdkit.training.plan import Plan

CHECKS = 10
# One lucky drawing is no copying.
IN_A_ROW = 2


def copying_from(photos: torch.Tensor) -> float:
    """The mean nearest-photo cosine from which samples count as copies of these photos, [m, d] of norm 1, m > 1.

    Half way from what the photos have among themselves, each compared with the others, to 1: photos of one thing are
    alike, and samples that are as alike show the thing, not a photo.
    """
    cosines = photos.double() @ photos.double().T
    own = cosines.fill_diagonal_(-1).max(dim=1).values.mean()
    return float(1 + own) / 2


def is_checked(done: int, steps: int) -> bool:
    """Whether samples are looked at after so many of all steps."""
    return done % max(1, steps // CHECKS) == 0


class EarlyStop:
    """Counts the checks in a row at which the samples of every concept were copies; `IN_A_ROW` of them end a training.

    template: of the prompts whose samples are compared with the photos.
    """

    def __init__(self, encoder: ImageEncoder, plan: Plan, template: str, note: Callable[[str], None]) -> None:
        self.encoder, self.note = encoder, note
        self.subjects = [template.replace("{}", planned.concept.subject) for planned in plan.concepts]
        self.in_a_row = 0
        self.photos = [
            self._embedded([_image(square.pixels) for square in planned.squares]) for planned in plan.concepts
        ]

    def check(self, done: int, drawn: Mapping[str, Sequence[Image.Image]]) -> bool:
        """Compare the samples by prompt that were drawn after so many steps; True when the training is to end."""
        copies, scores = [], []
        for subject, photos in zip(self.subjects, self.photos, strict=True):
            score = float(nearest_photo(self._embedded(drawn[subject]), photos).mean())
            limit = copying_from(photos)
            copies.append(score >= limit)
            scores.append(f"{score:.3f} of {limit:.3f}")
        self.in_a_row = self.in_a_row + 1 if all(copies) else 0
        ends = self.in_a_row >= IN_A_ROW
        if any(copies):
            then = "the training ends: it only copies the photos" if ends else "copies of the photos"
            self.note(
                f"Step {done}: nearest-photo score {', '.join(scores)}; {then if all(copies) else 'some copies'}."
            )
        return ends

    def _embedded(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.from_numpy(self.encoder.encode_images(images))


def _image(pixels: torch.Tensor) -> Image.Image:
    from PIL import Image

    values: Any = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(values)
