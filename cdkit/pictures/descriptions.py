"""What a picture's own metadata says of it: description, rights and author, from XMP, IPTC and EXIF, in this order.

Nothing is decoded: the header of the file is read. XMP is looked through by its words, so that no XML in it can harm.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cdkit.core.text import one_line
from cdkit.pictures.folder import START, picture_format

if TYPE_CHECKING:
    from PIL import Image

# EXIF 2.32 and Microsoft's XP tags (UTF-16); IPTC's caption, by-line and copyright notice.
_IMAGE_DESCRIPTION, _ARTIST, _COPYRIGHT, _EXIF, _USER_COMMENT = 0x010E, 0x013B, 0x8298, 0x8769, 0x9286
_XP_TITLE, _XP_COMMENT, _XP_SUBJECT = 0x9C9B, 0x9C9C, 0x9C9F
_IPTC = {"caption": (2, 120), "attribution": (2, 80), "licence": (2, 116)}
_ENCODINGS = {b"ASCII\0\0\0": "ascii", b"UNICODE\0": "utf-16", b"\0\0\0\0\0\0\0\0": "utf-8"}
# What cameras and programs write there of themselves.
_NO_DESCRIPTION = re.compile(
    r"(?:olympus|sony|kodak|minolta|samsung|nikon|canon|pentax|casio|fuji|ricoh|konica|dji)\b.*|.*digital camera"
    r"|dcim\b.*|.*\.(?:jpe?g|png|tiff?|webp)|default|untitled|screenshot|charset=.*|created with gimp",
    re.IGNORECASE,
)
_LONGEST_XMP = 1 << 20
_XMP = {
    "caption": r"dc:description",
    "attribution": r"dc:creator",
    "rights": r"dc:rights",
}
_ITEM = r"<{name}\b[^>]*>\s*<rdf:(?:Alt|Seq|Bag)>\s*<rdf:li\b[^>]*>([^<]*)</rdf:li>"
_PLAIN = r"(?:<{name}\b[^>]*>([^<]+)</{name}>|\b{name}=\"([^\"]*)\")"
_LICENCE_ADDRESS = re.compile(
    r"(?:<(?:cc:license|xmpRights:WebStatement)\b[^>]*rdf:resource=\"([^\"]*)\""
    r"|<(?:cc:license|xmpRights:WebStatement)\b[^>]*>([^<]+)<"
    r"|\b(?:cc:license|xmpRights:WebStatement)=\"([^\"]*)\")"
)


@dataclass(frozen=True)
class Description:
    """What is written in a picture file; None for what is not. width, height: as it is stored, in pixels."""

    caption: str | None = None
    licence: str | None = None
    attribution: str | None = None
    width: int | None = None
    height: int | None = None


def read_description(content: bytes) -> Description:
    """What the file says of itself; nothing for one that is no picture or whose metadata are damaged."""
    from PIL import Image

    kind = picture_format(content[:START])
    if kind is None:
        return Description()
    with warnings.catch_warnings(), suppress(Exception):  # every format's reader has errors of its own
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=(kind,))
        facts: dict[str, str] = {}
        # What reads one kind of metadata must not keep the others from being read.
        for read in (_of_xmp, _of_iptc, _of_exif):
            with suppress(Exception):
                facts = {**read(image), **facts}
        return Description(
            facts.get("caption"), facts.get("licence"), facts.get("attribution"), image.width, image.height
        )
    return Description()


def _of_xmp(image: Image.Image) -> dict[str, str]:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    text = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    text = text[:_LONGEST_XMP]
    found = {}
    for meaning, name in _XMP.items():
        match = re.search(_ITEM.format(name=name), text) or re.search(_PLAIN.format(name=name), text)
        if match is not None:
            found[meaning] = html.unescape(next(group for group in match.groups() if group is not None))
    address = _LICENCE_ADDRESS.search(text)
    licence = next(filter(None, address.groups()), "") if address is not None else ""
    rights = found.pop("rights", "")
    return _said({**found, "licence": html.unescape(licence) or rights})


def _of_iptc(image: Image.Image) -> dict[str, str]:
    from PIL import IptcImagePlugin

    tags: Mapping[tuple[int, int], Any] = IptcImagePlugin.getiptcinfo(image) or {}  # type: ignore[arg-type]
    values = {meaning: tags.get(tag) for meaning, tag in _IPTC.items()}
    first = {meaning: value[0] if isinstance(value, list) else value for meaning, value in values.items()}
    return _said({meaning: _decoded(value) for meaning, value in first.items() if value})


def _of_exif(image: Image.Image) -> dict[str, str]:
    exif = image.getexif()
    comment = exif.get_ifd(_EXIF).get(_USER_COMMENT)
    captions: list[Callable[[], str]] = [
        lambda: _decoded(exif.get(_IMAGE_DESCRIPTION)),
        *(lambda tag=tag: _wide(exif.get(tag)) for tag in (_XP_TITLE, _XP_SUBJECT, _XP_COMMENT)),
        lambda: _comment(comment),
    ]
    caption = next((text for read in captions if (text := read()) and _describes(text)), "")
    return _said(
        {"caption": caption, "attribution": _decoded(exif.get(_ARTIST)), "licence": _decoded(exif.get(_COPYRIGHT))}
    )


def _said(values: Mapping[str, str]) -> dict[str, str]:
    """The values that say something, on one line each."""
    lines = {meaning: one_line(text.replace("\0", " ")) for meaning, text in values.items()}
    return {meaning: text for meaning, text in lines.items() if text and (meaning != "caption" or _describes(text))}


def _describes(text: str) -> bool:
    return bool(text.strip("\0 \t\r\n")) and _NO_DESCRIPTION.fullmatch(one_line(text.replace("\0", " "))) is None


def _decoded(value: object) -> str:
    """Text as Pillow gives it, or bytes: UTF-8, else Latin-1, as older programs wrote it."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.decode("latin-1")
    if not isinstance(value, str):
        return ""
    # Pillow reads EXIF's text as Latin-1; most of what is not ASCII there is UTF-8.
    with suppress(UnicodeError):
        return value.encode("latin-1").decode("utf-8")
    return value


def _wide(value: object) -> str:
    content = bytes(value) if isinstance(value, tuple | list) else value
    return content.decode("utf-16-le", "ignore") if isinstance(content, bytes) else ""


def _comment(value: object) -> str:
    if not isinstance(value, bytes) or value[:8] not in _ENCODINGS:
        return _decoded(value)
    return value[8:].decode(_ENCODINGS[value[:8]], "ignore")
