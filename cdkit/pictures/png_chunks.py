"""PNG files whose texts or colour profile are larger than Pillow takes: the picture without them, and the profile.

Pillow refuses the whole file for a text or a profile of more than 1 MB unpacked, by limits that hold for the process.
"""

from __future__ import annotations

import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
# Below Pillow's own limits: of one text, and of all together.
TEXT_BYTES, ALL_TEXT_BYTES = 1 << 20, 8 << 20
# Profiles of scanners and printers have a few megabytes.
PROFILE_BYTES = 16 << 20


def without_large_texts(content: bytes) -> tuple[bytes, bytes | None]:
    """A PNG file without the texts and the profile that are too large, and that profile unpacked.

    The file itself where nothing is to be taken out; None for a profile that stays in it, or is larger than 16 MB.
    """
    view = memoryview(content)
    kept, profile, texts, place = [view[:8]], None, 0, len(SIGNATURE)
    while place + 12 <= len(content):
        size, kind = int.from_bytes(view[place : place + 4]), bytes(view[place + 4 : place + 8])
        end = place + 12 + size
        data = view[place + 8 : end - 4]
        keep = True
        if kind in TEXTS:
            unpacked = _text_size(kind, bytes(data))
            texts += unpacked
            keep = unpacked <= TEXT_BYTES and texts <= ALL_TEXT_BYTES
        elif kind == b"iCCP":
            packed = bytes(data).partition(b"\0")[2][1:]
            keep = len(_unpacked(packed, TEXT_BYTES)) <= TEXT_BYTES
            if not keep:
                whole = _unpacked(packed, PROFILE_BYTES)
                profile = whole if len(whole) <= PROFILE_BYTES else None
        if keep:
            kept.append(view[place:end])
        place = end
    kept.append(view[place:])
    taken_out = sum(map(len, kept)) < len(content)
    return (b"".join(kept) if taken_out else content), profile


def _text_size(kind: bytes, data: bytes) -> int:
    """Bytes of a text, those unpacked that are packed; counted to just over the limit."""
    rest = data.partition(b"\0")[2]
    if kind == b"zTXt":
        return len(_unpacked(rest[1:], TEXT_BYTES))
    if kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        return len(_unpacked(packed, TEXT_BYTES))
    return len(data)


def _unpacked(packed: bytes, most: int) -> bytes:
    """What zlib unpacks, up to a byte more than `most`; as far as it goes where the data are damaged."""
    try:
        return zlib.decompressobj().decompress(packed, most + 1)
    except zlib.error:
        return b""
