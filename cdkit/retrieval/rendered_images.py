"""Images of the embedded world's pool: drawn from what their URLs say, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdkit.errors import InputError
from cdkit.retrieval.candidates import Candidate
from cdkit.retrieval.content import FailedFetch, FetchedImage
from cdkit.retrieval.web_urls import split_url


@dataclass(frozen=True)
class RenderedContent:
    """The PNG file that a PoolServer would send for a URL."""

    seed: int
    size: int
    kind: str

    def read(self) -> bytes:
        from cdkit.embedded.pool_server import picture_bytes

        return picture_bytes(self.seed, self.size, self.kind)


def rendered(candidates: Sequence[Candidate]) -> dict[int, FetchedImage | FailedFetch]:
    """The image of every candidate by its place; links that are dead in the embedded world are dead here too.

    Raises InputError when no candidate's URL is one of the embedded pool.
    """
    found: dict[int, FetchedImage | FailedFetch] = {}
    known = False
    for place, candidate in enumerate(candidates):
        content = _content(candidate.url)
        if content is not None:
            found[place] = FetchedImage(candidate.url, content)
        else:
            found[place] = FailedFetch(candidate.url, "http_404", 404, "no picture of the embedded world")
        known = known or content is not None
    if candidates and not known:
        raise InputError(
            "The images of this index are not those of the embedded world.",
            hint="Leave --images out to download them, or give a folder that holds them.",
        )
    return found


def is_embedded_pool(candidates: Sequence[Candidate]) -> bool:
    """Whether all URLs are the embedded pool's own, at an address where nobody serves them unless asked to."""
    from cdkit.embedded.pool import DEFAULT_HOST

    parts = [split_url(candidate.url or "") for candidate in candidates]
    return bool(parts) and all(
        part is not None and part.netloc == DEFAULT_HOST and part.path.startswith(("/scene/", "/gone/"))
        for part in parts
    )


def _content(url: str | None) -> RenderedContent | None:
    from cdkit.embedded.pool_server import ADDRESS, LARGEST_SIZE
    from cdkit.embedded.world import IMAGE_SIZE

    parts = split_url(url or "")
    match = ADDRESS.fullmatch(parts.path) if parts is not None else None
    if match is None or not IMAGE_SIZE <= int(match[2]) <= LARGEST_SIZE:
        return None
    return RenderedContent(int(match[1]), int(match[2]), match[3])
