"""What became of a URL: an image that was got, not decoded yet, or a failure."""

from __future__ import annotations

from dataclasses import dataclass

from cdkit.pictures.content import Content


@dataclass(frozen=True)
class FetchedImage:
    """An image that was got, not decoded yet. sha256: of the bytes as they came, None where not read yet."""

    url: str | None
    content: Content
    sha256: str | None = None
    size: int | None = None
    status: int | None = None


@dataclass(frozen=True)
class FailedFetch:
    """A URL that was given up. kind: one of failures.FAILURE_KINDS; status: the HTTP status where there was one."""

    url: str | None
    kind: str
    status: int | None = None
    detail: str = ""
