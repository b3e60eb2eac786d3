"""Candidates from images at hand: their own captions compared with the prompts, no index needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdkit.errors import ConfigError
from cdkit.index.search import Match, encode_queries
from cdkit.pictures.picture import Picture
from cdkit.retrieval.candidates import CandidateSet, CandidateSettings, ordered_candidates
from cdkit.retrieval.content import FetchedImage
from cdkit.text import caption_id, clean_caption

if TYPE_CHECKING:
    from cdkit.protocols import TextEncoder


def local_candidates(
    stored: Sequence[Picture],
    prompts: Sequence[str],
    encoder: TextEncoder,
    settings: CandidateSettings | None = None,
) -> tuple[CandidateSet, dict[int, FetchedImage]]:
    """Candidates in the order of `cdkit.retrieval.candidates`, and each one's image by its place.

    A candidate's `source` is its image's key. Images without caption are left out. Raises ConfigError without prompts.
    """
    settings = settings or CandidateSettings()
    if not prompts or not all(clean_caption(prompt) for prompt in prompts):
        raise ConfigError("Give at least one prompt, and no empty one.")
    least = encoder.default_threshold if settings.min_similarity is None else settings.min_similarity
    groups: dict[str, list[Picture]] = {}
    for image in stored:
        caption = clean_caption(image.caption or "")
        if caption:
            groups.setdefault(caption, []).append(image)
    if not groups:
        return CandidateSet([], 0, 0), {}
    # As in an index, captions that clean to the same text are one, spelt as the first of them was written.
    written = [images[0].caption or "" for images in groups.values()]
    similarities = encode_queries(encoder, written) @ encode_queries(encoder, prompts).T
    matches = [
        (
            prompts[column],
            Match(caption_id(cleaned), written[row], float(similarities[row, column]), _rows(images)),
        )
        for row, (cleaned, images) in enumerate(groups.items())
        for column in range(len(prompts))
        if similarities[row, column] >= least
    ]
    found = ordered_candidates(matches, encoder, settings)
    by_key = {image.key: image for image in stored}
    images = {
        place: FetchedImage(candidate.url, by_key[str(candidate.source)].content)
        for place, candidate in enumerate(found.candidates)
    }
    return found, images


def _rows(images: Sequence[Picture]) -> list[dict[str, str | None]]:
    return [{"url": image.url, "source": image.key} for image in images]
