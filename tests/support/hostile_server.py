"""A loopback web server that behaves like the worst of the web, and a canary that must never be asked for anything.

The path says what happens: `/ok/7`, `/404`, `/drip-body`, … (see `Hostile`). Every request is counted by its path.
"""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

# No image, but bytes that are told apart by their path: nothing here decodes them.
PICTURE = b"\xff\xd8\xff\xe0 picture of "
BOMB_BYTES = 64 << 20
DRIP_SECONDS = 0.05
STATUSES = {str(status): status for status in (400, 403, 404, 405, 408, 410, 500, 503)}


def picture(path: str) -> bytes:
    """What `/ok/...` serves under a path."""
    return PICTURE + path.encode() + b"." * 2000


@cache
def bomb() -> bytes:
    """A small body that is large when it is unpacked."""
    return gzip.compress(bytes(BOMB_BYTES), 1)


class Hostile(BaseHTTPRequestHandler):
    """One request; the first part of the path names the behaviour."""

    protocol_version = "HTTP/1.1"
    server: HostileServer

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        visit = self.server.count(self.path)
        self.server.agents.add(self.headers.get("User-Agent"))
        if path in self.server.rules:
            self.answer(*self.server.rules[path])
            return
        name, _, _rest = path.lstrip("/").partition("/")
        if name in STATUSES:
            self.answer(STATUSES[name], b"no")
            return
        behaviour = getattr(self, f"act_{name.replace('-', '_')}", None)
        if behaviour is None:
            self.answer(404, b"no such behaviour")
            return
        with suppress(OSError):
            behaviour(visit)
        self.close_connection = True

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def act_ok(self, visit: int) -> None:
        self.answer(200, picture(self.path))

    def act_slow(self, visit: int) -> None:
        time.sleep(0.2)
        self.answer(200, picture(self.path))

    def act_429(self, visit: int) -> None:
        headers = {"Retry-After": "1"} if visit == 1 else {}
        self.answer(*(429, b"later", headers) if visit == 1 else (200, picture(self.path), headers))

    def act_429_long(self, visit: int) -> None:
        self.answer(429, b"much later", {"Retry-After": "86400"})

    def act_500_then_ok(self, visit: int) -> None:
        self.answer(*(500, b"oops") if visit == 1 else (200, picture(self.path)))

    def act_reset(self, visit: int) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.connection.close()

    def act_never(self, visit: int) -> None:
        self.server.closing.wait(60)

    def act_drip_body(self, visit: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.drip(b".")

    def act_drip_headers(self, visit: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self.drip(b"a")

    def drip(self, piece: bytes) -> None:
        while not self.server.closing.wait(DRIP_SECONDS):
            self.wfile.write(piece)
            self.wfile.flush()

    def act_endless(self, visit: int) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.closing.is_set():
            self.wfile.write(b"." * 65536)

    def act_long(self, visit: int) -> None:
        """Says less than it sends."""
        self.answer(200, picture(self.path), {"Content-Length": "100"})

    def act_short(self, visit: int) -> None:
        """Says more than it sends."""
        self.answer(200, picture(self.path), {"Content-Length": "100000"})

    def act_huge(self, visit: int) -> None:
        self.answer(200, b"", {"Content-Length": str(1 << 40)})

    def act_empty(self, visit: int) -> None:
        self.answer(200, b"")

    def act_garbage(self, visit: int) -> None:
        self.wfile.write(b"\x00\x01\x02 this is not HTTP\r\n\r\n")

    def act_redirect(self, visit: int) -> None:
        """`/redirect?to=URL`"""
        query = parse_qs(urlsplit(self.path).query)
        self.answer(302, b"", {"Location": unquote(query["to"][0])})

    def act_loop(self, visit: int) -> None:
        self.answer(302, b"", {"Location": self.path})

    def act_chain(self, visit: int) -> None:
        """`/chain/N` redirects N times and then answers."""
        left = int(self.path.rsplit("/", 1)[1])
        if left == 0:
            self.answer(200, picture(self.path))
        else:
            self.answer(301, b"", {"Location": f"{self.path.rsplit('/', 1)[0]}/{left - 1}"})

    def act_gzip(self, visit: int) -> None:
        self.answer(200, gzip.compress(picture(self.path)), {"Content-Encoding": "gzip"})

    def act_gzip_bomb(self, visit: int) -> None:
        self.answer(200, bomb(), {"Content-Encoding": "gzip"})

    def act_file(self, visit: int) -> None:
        """`/file/...`: what the test put there."""
        content = self.server.files.get(self.path)
        self.answer(*(404, b"no such file") if content is None else (200, content))

    def act_plain(self, visit: int) -> None:
        """Knows `?a=1&b=2`, but not the escaped form that stands in pages."""
        self.answer(*(404, b"no") if "amp;" in self.path else (200, picture(self.path)))

    def act_written(self, visit: int) -> None:
        """Knows nothing but the escaped form."""
        self.answer(*(200, picture(self.path)) if "amp;" in self.path else (404, b"no"))

    def act_wire(self, visit: int) -> None:
        """`/wire/...`: the bytes that the test wants on the wire, and then one piece of them over and over."""
        start, again = self.server.wire[self.path]
        self.wfile.write(start)
        while again and not self.server.closing.is_set():
            self.wfile.write(again)

    def act_noai(self, visit: int) -> None:
        self.answer(200, picture(self.path), {"X-Robots-Tag": "noai, noimageai"})

    def act_noai_for_others(self, visit: int) -> None:
        self.answer(200, picture(self.path), {"X-Robots-Tag": "otherbot: noai"})

    def act_tdm(self, visit: int) -> None:
        self.answer(200, picture(self.path), {"TDM-Reservation": "1"})


class HostileServer(ThreadingHTTPServer):
    """The server as a context manager; `address` decides which loopback addresses it listens on."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str = "127.0.0.1", port: int = 0, certificate: Path | None = None) -> None:
        super().__init__((address, port), Hostile)
        self.closing = threading.Event()
        self.hits: Counter[str] = Counter()
        self.agents: set[str | None] = set()
        self.files: dict[str, bytes] = {}
        # What robots.txt and ai.txt answer, by path: status, body and headers.
        self.rules: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.wire: dict[str, tuple[bytes, bytes]] = {}
        self._lock = threading.Lock()
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)

    @property
    def place(self) -> str:
        """`HOST:PORT`"""
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def url(self, path: str) -> str:
        return f"http://{self.place}/{path}"

    def count(self, path: str) -> int:
        """Count a request; how many there were for this path, this one included."""
        with self._lock:
            self.hits[path] += 1
            return self.hits[path]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are the point of this server."""

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Canary:
    """Counts connections to a loopback address that nothing may reach."""

    def __init__(self, address: str, port: int = 0) -> None:
        self._listener = socket.create_server((address, port))
        self._listener.settimeout(0.05)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self.connections = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError, OSError):
                connection, _ = self._listener.accept()
                self.connections += 1
                connection.close()

    def __enter__(self) -> Canary:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._listener.close()


class SilentListener(Canary):
    """Accepts connections and says nothing: a TLS handshake with it stalls."""

    def _accept(self) -> None:
        kept = []
        while not self._closing.is_set():
            with suppress(TimeoutError, OSError):
                connection, _ = self._listener.accept()
                self.connections += 1
                kept.append(connection)
        for connection in kept:
            connection.close()
