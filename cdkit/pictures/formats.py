"""The formats of pictures: what files are called, how they begin, and which of Pillow's decoders may see them."""

from __future__ import annotations

import re

# Bytes from the start of a file that tell its format.
START = 64
# What pictures are called in folders; what a file is, its content decides.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
# Photos that no decoder here reads: they are pictures of the folder, named by the error and never passed over.
UNREAD_SUFFIXES = frozenset({".heic", ".heif", ".hif", ".jxl"})
# Formats that keep every pixel as it was.
EXACT_FORMATS = frozenset({"PNG", "GIF", "BMP", "TIFF"})

# Pillow's name of a format, and how its files begin. Pillow knows forty more formats, some of which start other
# programs (EPS) or are read by code that hardly anybody uses: only these are ever opened.
_STARTS = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(?:avif|avis|(?:mif1|msf1)(?:.{4})*?avi[fs])", re.DOTALL)),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+")),
    ("BMP", re.compile(rb"BM")),
)
FORMATS = tuple(name for name, _ in _STARTS)

_HEIC = "HEIC, the photos of phones"
_JPEG_XL = "JPEG XL"
_GIT_LFS = "a Git LFS pointer in place of the picture"
_PAGE = "a web page in place of the picture"
_FOREIGN = (
    (_HEIC, re.compile(rb"....ftyp(?:hei[cxms]|hev[cx]|mif1|msf1)", re.DOTALL)),
    (_JPEG_XL, re.compile(rb"\xff\x0a|\0\0\0\x0cJXL ")),
    (_GIT_LFS, re.compile(rb"version https://git-lfs")),
    (_PAGE, re.compile(rb"\s*(?:<!doctype\s+html|<html)", re.IGNORECASE)),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("PDF", re.compile(rb"%PDF")),
    ("a Photoshop document", re.compile(rb"8BPS")),
    ("SVG or another text in XML", re.compile(rb"\s*(?:\xef\xbb\xbf)?<(?:svg|\?xml)", re.IGNORECASE)),
    ("JPEG 2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("a Windows metafile", re.compile(rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", re.DOTALL)),
    ("a Windows icon", re.compile(rb"\0\0[\x01\x02]\0[^\0]")),
    ("OpenEXR", re.compile(rb"v/1\x01")),
    ("a Netpbm picture", re.compile(rb"P[1-7fF][\s#]")),
    ("a film", re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", re.DOTALL)),
    ("an archive", re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!")),
)
# What stands where the picture itself should be: leaving it out would train on less than is there.
_IN_PLACE = frozenset({_HEIC, _JPEG_XL, _GIT_LFS, _PAGE})

HINTS = {
    _HEIC: "Convert it to JPEG or PNG first: HEIC needs a decoder that cdkit does not ship.",
    _JPEG_XL: "Convert it to JPEG or PNG first.",
    _GIT_LFS: "Fetch what it points to: git lfs pull.",
    _PAGE: "Download the picture again.",
}


def picture_format(start: bytes) -> str | None:
    """Pillow's name of the format that a file beginning like this has; None for all that is not opened."""
    return next((name for name, pattern in _STARTS if pattern.match(start)), None)


def foreign_kind(start: bytes) -> str | None:
    """What a file that is no picture is, by its start, in words; None when that is not known."""
    return next((name for name, pattern in _FOREIGN if pattern.match(start)), None)


def is_of_another_kind(start: bytes) -> bool:
    """Whether a file is something else than a picture, not a picture that is damaged, missing, or unread here."""
    if picture_format(start) is not None:
        return False
    kind = foreign_kind(start)
    return kind is not None and kind not in _IN_PLACE
