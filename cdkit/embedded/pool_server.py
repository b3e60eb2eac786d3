"""Serves the pool's pictures on loopback, rendered on demand: what the download stage fetches in a demo or a test."""

from __future__ import annotations

import io
import re
import threading
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from cdkit.embedded.rendering import render
from cdkit.embedded.world import IMAGE_SIZE, scene_from_seed
from cdkit.errors import OutputError

LARGEST_SIZE = 1024
ADDRESS = re.compile(r"/scene/(\d{1,18})-(\d{1,4})\.(png|jpg)")
MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg"}


@lru_cache(maxsize=512)
def picture_bytes(seed: int, size: int, kind: str) -> bytes:
    """A scene as a file: every pixel of the small picture becomes a square."""
    from PIL import Image

    picture = Image.fromarray(render(scene_from_seed(seed))).resize((size, size), Image.Resampling.NEAREST)
    content = io.BytesIO()
    if kind == "jpg":
        picture.save(content, format="JPEG", quality=95)
    else:
        picture.save(content, format="PNG", compress_level=1)
    return content.getvalue()


class PoolRequests(BaseHTTPRequestHandler):
    """GET and HEAD of `/scene/SEED-SIZE.png` or `.jpg`; anything else is 404."""

    protocol_version = "HTTP/1.1"
    server_version = "cdkit-pool"

    def do_GET(self) -> None:
        """The picture."""
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        """Its headers."""
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        """Sends a picture or 404."""
        found = ADDRESS.fullmatch(self.path.partition("?")[0])
        size = int(found[2]) if found else 0
        if found and IMAGE_SIZE <= size <= LARGEST_SIZE:
            status, media_type, content = 200, MEDIA_TYPES[found[3]], picture_bytes(int(found[1]), size, found[3])
        else:
            status, media_type, content = 404, "text/plain; charset=utf-8", b"no such picture\n"
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: a server in a test must not write to stderr."""


class PoolServer:
    """A threaded HTTP server on 127.0.0.1; port 0 takes a free one. Use it as a context manager.

    Raises OutputError when the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), PoolRequests)
        except OSError as error:
            raise OutputError(
                f"Port {port} on 127.0.0.1 cannot be used: {error}", hint="Choose another port."
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="pool-server", daemon=True)

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`: what write_pool and `--allow-host` take."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> PoolServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops serving and frees the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
