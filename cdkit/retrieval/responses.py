"""HTTP answers held to what they promise: bytes counted as they arrive, sizes checked, interim answers skipped."""

from __future__ import annotations

import http.client
import io
import re
import socket
from typing import Any

from cdkit.retrieval.failures import FetchFailure

# Besides the body: headers, the frames of its chunks, and what a server says before the answer.
OVERHEAD_BYTES = 1 << 20
MAX_INTERIM = 10
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_LONGEST_CHUNK_LINE = 1 << 16


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
            shown = ", ".join(sorted(stated))[:80]
            raise FetchFailure("protocol", f"a body of {shown} bytes", status=self.status)
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
