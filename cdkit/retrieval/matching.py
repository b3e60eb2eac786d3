"""Matching: the photos of a folder, and the captions nearest to each, so that a set has the photos' variety.

A photo is asked for by its caption, or by the picture itself where it has none and the index's encoder has a picture
tower. The photos take turns, and each takes the nearest caption that none has taken: so all get their share, and a
caption stands for one photo. The threshold is held against the prompts where there are any, else against the photo's
own caption: the cosine of a picture and a text is on another scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.protocols import Progress
from cdkit.core.text import MODIFIER_TOKEN, clean_caption
from cdkit.index.search import Match, encode_queries, search_vector
from cdkit.pictures.embedding import embed_pictures
from cdkit.pictures.folder import shown
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import read_pictures
from cdkit.retrieval.candidates import (
    DIGITS,
    CandidateSet,
    CandidateSettings,
    Likeness,
    best_matches,
    join_rows,
    search_prompts,
)

if TYPE_CHECKING:
    import numpy as np

    from cdkit.core.protocols import TextEncoder
    from cdkit.index.caption_index import CaptionIndex

# Of all photos together, captions looked at as a multiple of those of one prompt; of each photo, at least so many.
ALL_PHOTOS, LEAST_CAPTIONS = 4, 50


@dataclass(frozen=True)
class MatchedPhoto:
    """A photo that captions are looked for. caption: without modifier tokens; empty where the picture is asked."""

    name: str
    caption: str


@dataclass(frozen=True)
class MatchedPhotos:
    """The photos of a folder with what they are asked by: float32 [photos, dimension], rows of norm 1."""

    photos: list[MatchedPhoto]
    vectors: np.ndarray

    @property
    def captions(self) -> list[str]:
        """The distinct captions, in the photos' order."""
        return list(dict.fromkeys(photo.caption for photo in self.photos if photo.caption))


def read_matched_photos(
    source: str, encoder: TextEncoder, most: int, progress: Progress, *, prompted: bool
) -> MatchedPhotos:
    """The photos of a folder, a set or `embedded:NAME`; of more than `most`, so many at even distances.

    Raises InputError when there are none, or when photos without caption cannot be asked for by their pictures:
    the encoder has no picture tower, or they do not decode; ConfigError when these have no prompt (`prompted`).
    """
    folder = read_pictures(source).without_others()
    if not folder.pictures:
        raise InputError(f"{folder.source} holds no photos to match.", hint="Give the folder of the concept's photos.")
    for sentence in folder.all_notes():
        progress.note(sentence)
    chosen = folder.pictures
    if len(chosen) > most:
        chosen = [chosen[place * len(chosen) // most] for place in range(most)]
        progress.note(
            f"{folder.source} has {len(folder.pictures):,} photos for {most:,} images: {most:,} of the photos, at "
            "even distances, are matched."
        )
    captions = [_plain(picture.caption or "") for picture in chosen]
    pictures = [picture for picture, caption in zip(chosen, captions, strict=True) if not caption]
    if pictures and not prompted:
        raise ConfigError(
            f"{len(pictures)} of the photos in {folder.source} have no caption: {_names(pictures)}.",
            hint="Give a prompt that says what they show, or a caption for each (a .txt of its name beside it).",
        )
    by_picture = iter(_picture_vectors(encoder, pictures, progress))
    by_caption = iter(encode_queries(encoder, [caption for caption in captions if caption]) if any(captions) else ())
    return MatchedPhotos(
        [MatchedPhoto(picture.key, caption) for picture, caption in zip(chosen, captions, strict=True)],
        _stacked(next(by_caption) if caption else next(by_picture) for caption in captions),
    )


def _plain(caption: str) -> str:
    # A caption with {} says what is around the concept, not what it is: such a photo counts by its picture.
    if "{}" in caption:
        return ""
    # The captions of photos that were trained on name the concept by its modifier token, which no encoder knows.
    plain = " ".join(MODIFIER_TOKEN.sub(" ", caption).split())
    return plain if clean_caption(plain) else ""


def _names(pictures: Sequence[Picture]) -> str:
    return shown([picture.key for picture in pictures])


def _stacked(rows: Iterator[Any]) -> np.ndarray:
    import numpy as np

    return np.stack(list(rows))


def _picture_vectors(encoder: TextEncoder, pictures: Sequence[Picture], progress: Progress) -> Sequence[Any]:
    if not pictures:
        return ()
    from cdkit.encoders.image_towers import image_encoder_of

    try:
        images = image_encoder_of(encoder)
    except InputError as error:
        raise InputError(
            f"{len(pictures)} of the photos to match have no caption: {_names(pictures)}. {error.message}",
            hint="Give each a caption (a .txt of its name beside it), or use an index of a CLIP's encoder.",
        ) from error
    rows = embed_pictures(
        images,
        pictures,
        progress,
        label="embedding photos",
        hint="Mend or remove them, or give each a caption: then the picture itself is not needed.",
        alone=True,
    )
    return list(rows)


def find_matching(
    index: CaptionIndex,
    photos: MatchedPhotos,
    prompts: Sequence[str],
    wanted: int,
    settings: CandidateSettings | None = None,
) -> CandidateSet:
    """Candidates of an index for photos in turn. prompts: what their captions must also be like, where given.

    Raises ConfigError for impossible settings; an empty result is no error, its notes and counts say why.
    """
    import numpy as np

    settings = settings or CandidateSettings()
    limit = settings.caption_limit(wanted)
    distinct = np.unique(photos.vectors, axis=0)
    each = limit
    if settings.max_captions is None:
        each = min(limit, max(LEAST_CAPTIONS, -(-ALL_PHOTOS * limit // len(distinct))))
    least = index.default_threshold if settings.min_similarity is None else settings.min_similarity
    matches: list[tuple[str, Match]] = []
    notes = [index.outdated] if index.outdated else []
    if prompts:
        matches, notes = search_prompts(index, prompts, settings, limit)
    for vector in distinct:
        floor = -1.0 if prompts else least
        near = search_vector(index, vector, min_similarity=floor, limit=each, encode_limit=2 * each)
        matches += [("", match) for match in near.results]
    captions = [match for _, match in best_matches(matches)]
    return matched_candidates(captions, index.encoder, photos, prompts, settings, notes)


def matched_candidates(
    matches: Sequence[Match],
    encoder: TextEncoder,
    photos: MatchedPhotos,
    prompts: Sequence[str],
    settings: CandidateSettings,
    notes: Sequence[str] = (),
) -> CandidateSet:
    """Captions, however they were found, as candidates for photos in turn; their similarities are computed anew."""
    import numpy as np

    least = encoder.default_threshold if settings.min_similarity is None else settings.min_similarity
    matches = sorted(matches, key=lambda match: match.caption_id)
    if not matches:
        return join_rows([], settings, notes)
    vectors = encode_queries(encoder, [match.caption for match in matches])
    to_photos = np.round(vectors @ photos.vectors.T, DIGITS)
    texts = list(prompts)
    if prompts:
        to_prompts = np.round(vectors @ encode_queries(encoder, texts).T, DIGITS)
        allowed = np.repeat(to_prompts.max(axis=1, keepdims=True) >= least, len(photos.photos), axis=1)
    else:
        allowed = to_photos >= least
    ranks: list[tuple[str, Match]] = []
    likeness: dict[int, Likeness] = {}
    for row, column in taken_in_turn(to_photos, allowed):
        photo = photos.photos[column]
        best = int(to_prompts[row].argmax()) if prompts else 0
        query, similarity = (
            (texts[best], to_prompts[row, best]) if prompts else (photo.caption, to_photos[row, column])
        )
        ranks.append((query, replace(matches[row], similarity=float(similarity))))
        likeness[matches[row].caption_id] = Likeness(photo.name, round(float(to_photos[row, column]), DIGITS))
    return join_rows(ranks, settings, notes, likeness)


def taken_in_turn(similarities: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) of float32 [rows, columns]: columns in turn take the most similar allowed row that is left.

    Of equally similar rows the first is taken.
    """
    import numpy as np

    orders = [
        iter([row for row in np.argsort(-similarities[:, column], kind="stable").tolist() if allowed[row, column]])
        for column in range(similarities.shape[1])
    ]
    taken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    active = list(range(len(orders)))
    while active:
        left = []
        for column in active:
            row = next((row for row in orders[column] if row not in taken), None)
            if row is not None:
                taken.add(row)
                pairs.append((row, column))
                left.append(column)
        active = left
    return pairs
