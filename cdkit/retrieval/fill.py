"""Topping a set up with images that were made, not found; they go through the same curation and are marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cdkit.pictures.content import Content
from cdkit.pictures.regularization_set import GENERATED
from cdkit.retrieval.acceptance import Judge, Limits
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import FetchedImage
from cdkit.retrieval.download import Downloaded
from cdkit.retrieval.selection import select
from cdkit.text import caption_id, clean_caption


@dataclass(frozen=True)
class MadeImage:
    """An image that was drawn for a prompt, which is its caption."""

    content: Content
    prompt: str


# Draws the images with these numbers, always the same for a number.
ImageMaker = Callable[[range], Sequence[MadeImage]]
# Some of what is drawn is turned down; a model whose every image is alike must not draw for ever.
MOST_ROUNDS = 4


def fill(done: Downloaded, make: ImageMaker, *, wanted: int, judge: Judge) -> Downloaded:
    """Have images made until `wanted` are accepted, or until too many of them were turned down."""
    made: list[MadeImage] = []
    filled = done
    for _ in range(MOST_ROUNDS):
        missing = wanted - len(filled.accepted)
        if missing <= 0:
            break
        made += make(range(len(made), len(made) + missing))
        filled = top_up(done, made, wanted=wanted, judge=judge)
    return filled


def top_up(done: Downloaded, made: Sequence[MadeImage], *, wanted: int, judge: Judge) -> Downloaded:
    """Add images of `made`, in their order, until `wanted` are accepted; their `source` is `generated`.

    They must pass the same curation, and be no near-duplicates of what was found. What was found stays.
    """
    candidates = [candidate for candidate, _ in done.accepted]
    images = {place: image for place, (_, image) in enumerate(done.accepted)}
    for image in made:
        images[len(candidates)] = FetchedImage(None, image.content)
        number = caption_id(clean_caption(image.prompt))
        candidates.append(Candidate(image.prompt, number, image.prompt, 1.0, None, source=GENERATED))
    # A prompt has many images; the limits per caption and host were kept before.
    both = select(candidates, images, limits=Limits(wanted, per_caption=wanted), judge=judge)
    return replace(
        done,
        accepted=both.accepted,
        turned_down=[*done.turned_down, *both.turned_down],
        exhausted=len(both.accepted) < wanted,
    )
