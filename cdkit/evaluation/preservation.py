"""Preservation: what training did to pictures that have nothing to do with the concept.

Prompts that name no concept are drawn by the base model and after training, at the same seeds. Then a model that
keeps what it knew draws the same pictures, and they follow their prompts as well as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.core.errors import InputError
from cdkit.evaluation.embeddings import Embedded, Unrelated
from cdkit.evaluation.samples import read_sample_set
from cdkit.evaluation.scoring import Bootstrap, SetScores, text_alignment

if TYPE_CHECKING:
    from torch import Tensor

    from cdkit.pictures.picture import Picture

# A pixel counts as kept when no channel is off by more, of 255: what a rounding or a faint noise comes to.
TOLERANCE = 8


def read_unrelated(after: Path, before: Path, tokens: Sequence[str] = ()) -> Unrelated:
    """Read both folders; raises InputError for samples that the base's lack, and for prompts that name a concept."""
    samples = read_sample_set(after, tokens)
    base = {(sample.prompt, sample.seed): sample.picture for sample in read_sample_set(before).samples}
    named = [sample.prompt for sample in samples.samples if sample.of_concept]
    if named:
        raise InputError(
            f"{after} has prompts with a modifier token, the first {named[0]!r}: these are not unrelated.",
            hint="Draw prompts that name no concept: cdkit sample --index INDEX --without WORD draws some.",
        )
    lacking = [sample for sample in samples.samples if (sample.prompt, sample.seed) not in base]
    if lacking:
        raise InputError(
            f"{before} lacks {len(lacking)} of the {len(samples.samples)} samples of {after}, the first "
            f"{lacking[0].prompt!r} with seed {lacking[0].seed}.",
            hint="Draw the same prompts and seeds with the base model.",
        )
    return Unrelated(samples, tuple(base[sample.prompt, sample.seed] for sample in samples.samples))


def score_unrelated(unrelated: Unrelated, embedded: Embedded, *, resamples: int, seed: int) -> SetScores:
    """Both scores with their intervals, from embeddings of the samples, their prompts and all pictures before."""
    import torch

    scores = SetScores(unrelated.samples)
    bootstrap = Bootstrap(scores, resamples, seed)
    places = list(range(len(unrelated.samples.samples)))
    before = torch.stack([embedded.before[place] for place in places])
    texts = embedded.texts
    bootstrap.add("text_change", places, text_alignment(embedded.images, texts) - text_alignment(before, texts))
    pictures = [sample.picture for sample in unrelated.samples.samples]
    bootstrap.add("pixels_kept", places, pixels_kept(pictures, unrelated.before))
    return scores


def pixels_kept(pictures: Sequence[Picture], before: Sequence[Picture]) -> Tensor:
    """For each pair of pictures the share of their pixels that are the same within TOLERANCE, float64 [n].

    Raises InputError for a pair of different sizes.
    """
    import numpy as np
    import torch

    shares = []
    for one, other in zip(pictures, before, strict=True):
        now, then = (np.asarray(picture.open().convert("RGB"), dtype=np.int16) for picture in (one, other))
        if now.shape != then.shape:
            sizes = " and ".join(f"{shape[1]} × {shape[0]}" for shape in (now.shape, then.shape))
            raise InputError(f"{one.name} and {other.name} have different sizes: {sizes}.", hint="Draw both alike.")
        shares.append(float((np.abs(now - then).max(axis=2) <= TOLERANCE).mean()))
    return torch.tensor(shares, dtype=torch.float64)
