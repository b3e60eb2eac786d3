"""Bodies that a server compressed although it was asked not to: undone within bounds, or named."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping

from cdkit.retrieval.failures import FetchFailure

MAX_LAYERS = 4
BLOCK = 1 << 16
# What servers say of a body that is not compressed.
_PLAIN = frozenset({"", "identity", "none", "binary", "utf-8", "utf8"})
_GZIP = b"\x1f\x8b"
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM|II\*\0|MM\0\*|.{4}ftyp", re.DOTALL)


def decoded(content: bytes, encoding: str, limit: int) -> bytes:
    """Undo the encodings that a Content-Encoding names; what is not encoded as it says stays as it is.

    Raises FetchFailure: too_large beyond `limit` bytes, encoding for one that nothing here can undo.
    """
    layers = [name for text in encoding.lower().split(",") if (name := text.strip()) not in _PLAIN]
    if len(layers) > MAX_LAYERS:
        raise FetchFailure("encoding", f"{len(layers)} encodings on top of each other")
    for name in reversed(layers):
        undo = _DECODERS.get(name)
        if undo is not None:
            content = _within(undo(content, limit + 1), limit, name) or content
        elif not _PICTURE.match(content):
            raise FetchFailure("encoding", f"Content-Encoding {name[:40]}")
    return content


def _within(content: bytes, limit: int, name: str) -> bytes:
    if len(content) > limit:
        raise FetchFailure("too_large", f"more than {limit} bytes after {name}")
    return content


def _zlib(content: bytes, most: int) -> bytes:
    """gzip, in one or several members, or zlib's own format, also without its frame; empty for what is neither."""
    if content.startswith(_GZIP):
        return _members(content, most)
    plain, whole = _inflated(content, zlib.MAX_WBITS, most)
    if plain or whole:
        return plain
    # Without a frame nearly anything begins like a deflated body: only what ends like one counts.
    plain, whole = _inflated(content, -zlib.MAX_WBITS, most)
    return plain if whole or len(plain) >= most else b""


def _inflated(content: bytes, bits: int, most: int) -> tuple[bytes, bool]:
    """What could be inflated, at most `most` bytes, and whether it came to its end."""
    decoder = zlib.decompressobj(bits)
    try:
        return decoder.decompress(content, most), decoder.eof
    except zlib.error:
        return b"", False


def _members(content: bytes, most: int) -> bytes:
    plain = bytearray()
    while content.startswith(_GZIP) and len(plain) < most:
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            plain += decoder.decompress(content, most - len(plain))
        except zlib.error:
            break
        content = decoder.unused_data
    return bytes(plain)


def _by_arrow(codec: str) -> Callable[[bytes, int], bytes]:
    """A decoder by a codec of Arrow's: what could be undone, up to where the content breaks off."""

    def undo(content: bytes, most: int) -> bytes:
        import pyarrow as pa

        plain = bytearray()
        try:
            with pa.input_stream(pa.BufferReader(content), compression=codec) as stream:
                while len(plain) < most and (block := stream.read(min(BLOCK, most - len(plain)))):
                    plain += block
        except MemoryError:
            raise
        except (OSError, pa.ArrowException):
            pass
        return bytes(plain)

    return undo


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = {
    "gzip": _zlib,
    "x-gzip": _zlib,
    "deflate": _zlib,
    "br": _by_arrow("brotli"),
    "zstd": _by_arrow("zstd"),
}
