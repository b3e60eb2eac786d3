"""Images at hand instead of the web: a folder's, joined with candidates or found by captions; the embedded world's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import ConfigError, InputError
from cdkit.core.text import caption_id, clean_caption
from cdkit.fetching.failures import FetchFailure
from cdkit.fetching.job import FailedFetch, FetchedImage
from cdkit.fetching.urls import spellings, split_url
from cdkit.index.search import Match, encode_queries
from cdkit.pictures.collection import iterate_addresses
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import PictureFolder, read_pictures
from cdkit.retrieval.candidates import Candidate, CandidateSet, CandidateSettings, ordered_candidates
from cdkit.retrieval.matching import MatchedPhotos, matched_candidates

if TYPE_CHECKING:
    from cdkit.core.protocols import TextEncoder


def read_images(folder: Path, wanted: Sequence[Candidate] | None = None) -> PictureFolder:
    """Find the images of `folder`, whatever its layout, that have a caption or a URL; nothing is decoded.

    wanted: keep only what these candidates may be joined with, in an output of millions of rows. Raises InputError
    when the folder is missing, holds no images, or a table or caption file of it is damaged.
    """
    source = read_pictures(folder, None if wanted is None else _of_use(wanted))
    images = [picture for picture in source.pictures if picture.caption or picture.url]
    reasons = {"no_caption": len(source.pictures) - len(images), "missing": source.missing, **source.rejected}
    rejected = {reason: number for reason, number in reasons.items() if number}
    if not images and wanted is None:
        reasons_named = ", ".join(f"{number} {reason}" for reason, number in rejected.items()) or "it holds none"
        raise InputError(
            f"{source.source} holds no image that can be used ({reasons_named}).",
            hint="Captions are expected in a .txt or .caption beside each image, in metadata.jsonl or metadata.csv, "
            "or in caption.txt.",
        )
    return replace(source, pictures=images, rejected=rejected)


def _of_use(candidates: Sequence[Candidate]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a row is of use to some candidates: by one of their URLs, or a caption of one without URL."""
    urls = {_same(candidate.url) for candidate in candidates if candidate.url}
    captions = {candidate.caption_id for candidate in candidates if not candidate.url}

    def of_use(row: Mapping[str, Any]) -> bool:
        if row.get("url") and _same(row["url"]) in urls:
            return True
        caption = row.get("caption")
        return bool(captions) and caption is not None and caption_id(clean_caption(caption)) in captions

    return of_use


def match_candidates(candidates: Sequence[Candidate], stored: Sequence[Picture]) -> dict[int, FetchedImage]:
    """The image of each candidate that has one, by its place: joined by URL, else by caption.

    An image serves one candidate only; where several images have a caption, candidates take them in key order.
    """
    by_url: dict[str, Picture] = {}
    by_caption: dict[int, list[Picture]] = {}
    for image in sorted(stored, key=lambda image: image.key):
        if image.url:
            by_url.setdefault(_same(image.url), image)
        if image.caption is not None:
            by_caption.setdefault(caption_id(clean_caption(image.caption)), []).append(image)
    images: dict[int, FetchedImage] = {}
    used: set[str] = set()
    for place, candidate in enumerate(candidates):
        same = by_url.get(_same(candidate.url)) if candidate.url else None
        if same is not None and same.key not in used:
            used.add(same.key)
            images[place] = FetchedImage(candidate.url, same.content)
    for place, candidate in enumerate(candidates):
        # A candidate whose URL is known to show something else is never given another picture.
        if place in images or (candidate.url and by_url):
            continue
        free = next((image for image in by_caption.get(candidate.caption_id, []) if image.key not in used), None)
        if free is not None:
            used.add(free.key)
            images[place] = FetchedImage(candidate.url, free.content)
    return images


def files_at_hand(candidates: Sequence[Candidate]) -> dict[int, FetchedImage | FailedFetch] | None:
    """The files of candidates whose pool is a folder of pictures, by place; None where no candidate is of one."""
    contents = dict(iterate_addresses([candidate.url for candidate in candidates]))
    if not contents:
        return None
    return {
        place: FetchedImage(candidates[place].url, content)
        if content is not None
        else FailedFetch(candidates[place].url, "missing", detail="the file is not there any more")
        for place, content in contents.items()
    }


def _same(url: str) -> str:
    """One text for all spellings of a URL."""
    try:
        return spellings(url)[0].text
    except FetchFailure:
        return url


def local_candidates(
    stored: Sequence[Picture],
    prompts: Sequence[str],
    encoder: TextEncoder,
    settings: CandidateSettings | None = None,
    photos: MatchedPhotos | None = None,
) -> tuple[CandidateSet, dict[int, FetchedImage]]:
    """Candidates in the order of `cdkit.retrieval.candidates`, and each one's image by its place.

    A candidate's `source` is its image's key. Images without caption are left out. photos: to match. Raises
    ConfigError without prompts and photos.
    """
    settings = settings or CandidateSettings()
    if not (prompts or photos) or not all(clean_caption(prompt) for prompt in prompts):
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
    written = [Match(caption_id(text), images[0].caption or "", 0.0, _rows(images)) for text, images in groups.items()]
    if photos is not None:
        result = matched_candidates(written, encoder, photos, prompts, settings)
    else:
        captions = [match.caption for match in written]
        similarities = (encode_queries(encoder, captions) @ encode_queries(encoder, prompts).T).tolist()
        matches = [
            (prompt, replace(match, similarity=similarity))
            for match, row in zip(written, similarities, strict=True)
            for prompt, similarity in zip(prompts, row, strict=True)
            if similarity >= least
        ]
        result = ordered_candidates(matches, encoder, settings)
    by_key = {image.key: image for image in stored}
    images = {
        place: FetchedImage(candidate.url, by_key[str(candidate.source)].content)
        for place, candidate in enumerate(result.candidates)
    }
    return result, images


def _rows(images: Sequence[Picture]) -> list[dict[str, Any]]:
    return [{"url": image.url, "source": image.key} for image in images]


@dataclass(frozen=True)
class RenderedContent:
    """The PNG file that a PoolServer would send for a URL."""

    seed: int
    size: int
    kind: str

    def read(self) -> bytes:
        from cdkit.embedded.pool import picture_bytes

        return picture_bytes(self.seed, self.size, self.kind)


def rendered(candidates: Sequence[Candidate]) -> dict[int, FetchedImage | FailedFetch]:
    """The image of every candidate by its place; links that are dead in the embedded world are dead here too.

    Raises InputError when no candidate's URL is one of the embedded pool.
    """
    images: dict[int, FetchedImage | FailedFetch] = {}
    for place, candidate in enumerate(candidates):
        content = _content(candidate.url)
        if content is not None:
            images[place] = FetchedImage(candidate.url, content)
        else:
            images[place] = FailedFetch(candidate.url, "http_404", 404, "no picture of the embedded world")
    if candidates and not any(isinstance(image, FetchedImage) for image in images.values()):
        raise InputError(
            "The images of this index are not those of the embedded world.",
            hint="Leave --images out to download them, or give a folder that holds them.",
        )
    return images


def is_embedded_pool(candidates: Sequence[Candidate]) -> bool:
    """Whether all URLs are the embedded pool's own, at an address where nobody serves them unless asked to."""
    from cdkit.embedded.pool import DEFAULT_HOST

    parts = [split_url(candidate.url or "") for candidate in candidates]
    return bool(parts) and all(
        part is not None and part.netloc == DEFAULT_HOST and part.path.startswith(("/scene/", "/gone/"))
        for part in parts
    )


def _content(url: str | None) -> RenderedContent | None:
    from cdkit.embedded.pool import ADDRESS, LARGEST_SIZE
    from cdkit.embedded.world import IMAGE_SIZE

    parts = split_url(url or "")
    match = ADDRESS.fullmatch(parts.path) if parts is not None else None
    if match is None or not IMAGE_SIZE <= int(match[2]) <= LARGEST_SIZE:
        return None
    return RenderedContent(int(match[1]), int(match[2]), match[3])
