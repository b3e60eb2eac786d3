"""What one image is: decoded, measured, hashed, judged by itself, and stored once under the hash of its original."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdkit.errors import InputError
from cdkit.pictures.content import Content
from cdkit.pictures.hashing import NEAR, NearHashes, perceptual_hash
from cdkit.retrieval.blocklist import BLOCKLISTED, Blocklist, digests

if TYPE_CHECKING:
    from PIL import Image

# A picture from the web may take less than one of the user's own; in RGB it has 360 MB.
MAX_PIXELS = 89_478_485
# Reasons that mean: not even a picture came out of the bytes.
UNDECODED = frozenset(
    {"unreadable", "not_raster", "not_an_image", "too_many_pixels", "truncated", "damaged", "memory", "decode_time"}
    | {"decoder_crash"}
)


@dataclass(frozen=True)
class InspectionRules:
    """What an image must be by itself. max_side: larger pictures are shrunk to it, in pixels."""

    min_side: int = 1
    max_aspect_ratio: float | None = None
    max_side: int = 1024
    blocklist: Blocklist = field(default_factory=Blocklist)


@dataclass(frozen=True)
class Inspection:
    """What was found. sha256: of the original bytes; reason: why it is not used, None when it can be.

    width, height: of the stored picture; phash: its 64-bit perceptual hash; name: the stored file; size: its bytes.
    """

    sha256: str = ""
    reason: str | None = None
    detail: str = ""
    width: int = 0
    height: int = 0
    phash: int = 0
    name: str = ""
    size: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def inspect(content: Content, rules: InspectionRules, store: Path) -> Inspection:
    """Decode one image and store it, encoded once.

    Raises MemoryError, and OSError when the store cannot be written.
    """
    from cdkit.pictures.decoding import Undecodable, decode, encode, is_blank

    try:
        original = content.read()
    except InputError as error:
        return Inspection(reason="unreadable", detail=error.message[:200])
    sha256 = hashlib.sha256(original).hexdigest()
    listed = rules.blocklist
    if listed.hashes and not listed.hashes.isdisjoint(digests(original)):
        return Inspection(sha256, BLOCKLISTED, f"sha256 {sha256}")
    try:
        decoded = decode(original, rules.max_side, max_pixels=MAX_PIXELS)
    except Undecodable as error:
        return Inspection(sha256, error.reason, error.detail)
    picture = decoded.picture
    found = Inspection(sha256, width=picture.width, height=picture.height, phash=perceptual_hash(picture))
    if found.phash in NearHashes(NEAR, listed.perceptual):
        return replace(found, reason=BLOCKLISTED, detail=f"sha256 {sha256}")
    reason = _reason(picture, rules, is_blank(picture))
    if reason is not None:
        return replace(found, reason=reason, detail=f"{picture.width} × {picture.height}")
    encoded, suffix = encode(decoded)
    name = f"{sha256}.{suffix}"
    # Neither renamed nor synced, which takes longer than decoding: the journal tells what was cut short by its size.
    (store / name).write_bytes(encoded)
    return replace(found, name=name, size=len(encoded))


def _reason(picture: Image.Image, rules: InspectionRules, blank: bool) -> str | None:
    short, long = sorted(picture.size)
    if short < rules.min_side:
        return "too_small"
    if rules.max_aspect_ratio is not None and long / short > rules.max_aspect_ratio:
        return "aspect_ratio"
    return "blank" if blank else None
