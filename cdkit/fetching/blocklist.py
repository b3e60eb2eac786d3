"""A blocklist: URLs that are never asked for, and hashes of images that are never written; named by hash only."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from cdkit.core.errors import InputError
from cdkit.core.storage import read_lines
from cdkit.fetching.job import FailedFetch
from cdkit.fetching.urls import url_text

BLOCKLISTED = "blocklisted"
_HEX = re.compile(r"[0-9a-f]+")
# md5, sha1 and sha256 of the bytes.
_EXACT_DIGITS = frozenset({32, 40, 64})
PERCEPTUAL_DIGITS = 16
MISTAKES_SHOWN = 5


@dataclass(frozen=True)
class Blocklist:
    """urls: as parse_url writes them. hashes: md5, sha1 and sha256 in hex of files. perceptual: 64-bit phashes."""

    urls: frozenset[str] = frozenset()
    hashes: frozenset[str] = frozenset()
    perceptual: tuple[int, ...] = ()

    def exact(self) -> frozenset[str]:
        """What can be told without decoding: URLs and hashes of bytes."""
        return self.urls | self.hashes


def read_blocklist(path: Path) -> Blocklist:
    """Read a text file with a URL or a hash in hex a line; empty lines and lines starting with `#` are skipped.

    A hash of 32, 40 or 64 digits is md5, sha1 or sha256 of a file, one of 16 digits a perceptual hash. Raises
    InputError when the file cannot be read or a line is neither: a list that is half understood protects nobody.
    """
    urls, hashes, perceptual, mistakes = set(), set(), [], []
    for number, line in enumerate(read_lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        digits = text.lower() if _HEX.fullmatch(text.lower()) else ""
        if len(digits) in _EXACT_DIGITS:
            hashes.add(digits)
        elif len(digits) == PERCEPTUAL_DIGITS:
            perceptual.append(int(digits, 16))
        elif (url := url_text(text)) is not None:
            urls.add(url)
        else:
            mistakes.append(number)
    if mistakes:
        numbers = ", ".join(map(str, mistakes[:MISTAKES_SHOWN])) + (", …" if len(mistakes) > MISTAKES_SHOWN else "")
        raise InputError(
            f"{len(mistakes)} line(s) of the blocklist {path} are neither a URL nor a hash: {numbers}.",
            hint="Give a URL with http:// or https://, or md5, sha1, sha256 or a perceptual hash in hex, one a line.",
        )
    return Blocklist(frozenset(urls), frozenset(hashes), tuple(perceptual))


def digests(content: bytes) -> frozenset[str]:
    """md5, sha1 and sha256 of bytes in hex: what lists of hashes are made of."""
    return frozenset(
        hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in ("md5", "sha1", "sha256")
    )


def blocked_url(url: str) -> FailedFetch:
    """What becomes of a candidate whose URL is on the list: it is known by the hash of its URL from then on."""
    return FailedFetch(None, BLOCKLISTED, detail=f"URL sha256 {hashlib.sha256(url.encode()).hexdigest()}")
