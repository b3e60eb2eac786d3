"""Answers of servers: bodies bounded while they are read, encodings undone within bounds, opt-outs heard."""

from __future__ import annotations

import http.client
import io
import re
import socket
import zlib
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any

from cdkit.fetching.failures import FetchFailure

# Besides the body: headers, the frames of its chunks, and what a server says before the answer.
OVERHEAD_BYTES = 1 << 20
MAX_INTERIM = 10
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LONGEST_CHUNK_LINE = 1 << 16
MAX_LAYERS = 4
BLOCK = 1 << 16
# What servers say of a body that is not compressed.
_PLAIN = frozenset({"", "identity", "none", "binary", "utf-8", "utf8"})
_GZIP = b"\x1f\x8b"
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF|BM|II\*\0|MM\0\*|.{4}ftyp", re.DOTALL)
OPT_OUTS = frozenset({"noai", "noimageai"})
# Directives that carry a value after a colon; any other word before a colon names a user agent.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


class BoundedResponse(http.client.HTTPResponse):
    """A response whose body may have `max_bytes`; http.client alone believes any size a server states.

    Raises FetchFailure: too_large, or protocol for a size that is none, for sizes that differ, and for an upgrade.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, max_bytes: int, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self._max_bytes = max_bytes
        # A chunk of one byte takes six on the wire.
        raw = self.fp.detach()
        self.fp = io.BufferedReader(Metered(raw, 2 * max_bytes + OVERHEAD_BYTES))

    def _read_status(self) -> tuple[str, int, str]:
        # http.client skips 100 only, and takes 102 and 103 for the answer.
        for _ in range(MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200:
                return version, status, reason
            if status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                raise FetchFailure("protocol", "101: another protocol that nobody asked for", status=status)
            http.client.parse_headers(self.fp)
        raise FetchFailure("protocol", f"more than {MAX_INTERIM} interim answers", status=status)

    def check_promises(self) -> None:
        """Of a body that is about to be read: how it is framed, and how long it says it is."""
        coding = ", ".join(self.headers.get_all("Transfer-Encoding", [])).strip().lower()
        if coding not in ("", "identity", "chunked"):
            raise FetchFailure("encoding", f"Transfer-Encoding {coding[:40]}", status=self.status)
        if self.chunked:
            return
        stated = {part.strip() for value in self.headers.get_all("Content-Length", []) for part in value.split(",")}
        stated.discard("")
        if len(stated) > 1 or not all(map(_LENGTH.fullmatch, stated)):
            lengths = ", ".join(sorted(stated))[:80]
            raise FetchFailure("protocol", f"a body of {lengths} bytes", status=self.status)
        if stated and self.length is None:
            # Said twice, which http.client takes for nothing said.
            self.length = int(stated.pop())
        if self.length is not None and self.length > self._max_bytes:
            raise FetchFailure("too_large", f"{self.length} bytes announced", status=self.status)

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_LONGEST_CHUNK_LINE)
        if not line.endswith(b"\n") and len(line) < _LONGEST_CHUNK_LINE:
            raise http.client.IncompleteRead(b"")
        digits = line.partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(digits):
            raise FetchFailure("protocol", f"a chunk of {digits[:40].decode('latin-1')!r} bytes", status=self.status)
        size = int(digits, 16)
        if size > self._max_bytes:
            raise FetchFailure("too_large", f"a chunk of {size} bytes announced", status=self.status)
        return size


class Metered(io.RawIOBase):
    """A raw stream that may give `limit` bytes in all; reading on raises FetchFailure(too_large)."""

    def __init__(self, raw: io.RawIOBase, limit: int) -> None:
        self._raw = raw
        self._limit = limit
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        number = self._raw.readinto(buffer)
        self._left -= number or 0
        if self._left < 0:
            raise FetchFailure("too_large", f"more than {self._limit} bytes sent")
        return number

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


def opts_out(headers: Message, agent: str) -> str | None:
    """The header that forbids this use to everybody or to `agent`, a lower-case token; None when there is none."""
    for value in headers.get_all("TDM-Reservation", []):
        if str(value).strip() == "1":
            return "TDM-Reservation: 1"
    for value in headers.get_all("X-Robots-Tag", []):
        if directives_for(str(value), agent) & OPT_OUTS:
            return f"X-Robots-Tag: {str(value)[:100]}"
    return None


def directives_for(value: str, agent: str) -> set[str]:
    """The directives of one X-Robots-Tag value that apply to `agent`: `noai, otherbot: noindex` is two scopes."""
    directives: set[str] = set()
    applies = True
    for part in value.lower().split(","):
        directive = part.strip()
        name, colon, rest = directive.partition(":")
        if colon and name.strip() not in _VALUED:
            applies = name.strip() in {agent, "*"}
            directive = rest.strip()
        if applies and directive:
            directives.add(directive.partition(":")[0].strip())
    return directives


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
            plain = undo(content, limit + 1)
            if len(plain) > limit:
                raise FetchFailure("too_large", f"more than {limit} bytes after {name}")
            content = plain or content
        elif not _PICTURE.match(content):
            raise FetchFailure("encoding", f"Content-Encoding {name[:40]}")
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
