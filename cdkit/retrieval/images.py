"""Images that are there already, in any layout that `cdkit.pictures.reading` reads, joined with candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdkit.errors import InputError
from cdkit.pictures.picture import Picture
from cdkit.pictures.reading import read_pictures
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import FetchedImage
from cdkit.retrieval.failures import FetchFailure
from cdkit.retrieval.web_urls import spellings
from cdkit.text import caption_id, clean_caption


@dataclass(frozen=True)
class StoredImages:
    """The captioned images of a folder and its layout; rejected: what could not be used, by reason."""

    layout: str
    images: list[Picture]
    rejected: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_images(folder: Path, wanted: Sequence[Candidate] | None = None) -> StoredImages:
    """Find the images of `folder`, whatever its layout, that have a caption or a URL; nothing is decoded.

    wanted: keep only what these candidates may be joined with, in an output of millions of rows. Raises InputError
    when the folder is missing, holds no images, or a table or caption file of it is damaged.
    """
    source = read_pictures(folder, None if wanted is None else _Wanted(wanted))
    images = [picture for picture in source.pictures if picture.caption or picture.url]
    reasons = {"no_caption": len(source.pictures) - len(images), "missing": source.missing, **source.rejected}
    rejected = {reason: number for reason, number in reasons.items() if number}
    if not images and wanted is None:
        shown = ", ".join(f"{number} {reason}" for reason, number in rejected.items()) or "it holds none"
        raise InputError(
            f"{source.source} holds no image that can be used ({shown}).",
            hint="Captions are expected in a .txt or .caption beside each image, in metadata.jsonl or metadata.csv, "
            "or in caption.txt.",
        )
    return StoredImages(source.layout, images, rejected, source.all_notes())


class _Wanted:
    """What a row must have to be of use to some candidates: one of their URLs, or a caption of one without URL."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._urls = {_same(candidate.url) for candidate in candidates if candidate.url}
        self._captions = {candidate.caption_id for candidate in candidates if not candidate.url}

    def __call__(self, row: Mapping[str, Any]) -> bool:
        if row.get("url") and _same(row["url"]) in self._urls:
            return True
        caption = row.get("caption")
        return bool(self._captions) and caption is not None and caption_id(clean_caption(caption)) in self._captions


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
    found: dict[int, FetchedImage] = {}
    used: set[str] = set()
    for place, candidate in enumerate(candidates):
        same = by_url.get(_same(candidate.url)) if candidate.url else None
        if same is not None and same.key not in used:
            used.add(same.key)
            found[place] = FetchedImage(candidate.url, same.content)
    for place, candidate in enumerate(candidates):
        # A candidate whose URL is known to show something else is never given another picture.
        if place in found or (candidate.url and by_url):
            continue
        free = next((image for image in by_caption.get(candidate.caption_id, []) if image.key not in used), None)
        if free is not None:
            used.add(free.key)
            found[place] = FetchedImage(candidate.url, free.content)
    return found


def _same(url: str) -> str:
    """One text for all spellings of a URL."""
    try:
        return spellings(url)[0].text
    except FetchFailure:
        return url
