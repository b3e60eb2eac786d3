"""A pool of image–caption rows from the embedded world, in the LAION-400M columns, and a server of its pictures.

Rows are a function of the seed alone. A row's URL holds the scene it shows (`/scene/SEED-SIZE.png`), so that a
PoolServer renders it on demand and no picture is stored. As on the web, captions repeat, ratings are missing here and
there, some pictures are too small and some links are dead (`/gone/...`).
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from cdkit.core.errors import ConfigError, OutputError
from cdkit.core.storage import atomic_path
from cdkit.embedded.grammar import Detail, describe, frame_words, single_words
from cdkit.embedded.rendering import render
from cdkit.embedded.world import IMAGE_SIZE, Scene, generator, scene_from_seed

if TYPE_CHECKING:
    import pyarrow as pa


DEFAULT_ROWS = 200_000
DEFAULT_HOST = "127.0.0.1:8532"
ROWS_PER_FILE = 50_000
SCENE_SEEDS = 40_000_000
PICTURE_SIZES = (128, 192, 256, 256, 256, 320, 384, 512)
RATINGS = (("UNLIKELY", 0.93), ("UNSURE", 0.05), ("NSFW", 0.01))
REPOST_SHARE = 0.1
DEAD_SHARE = 0.03
CLASS_NAME_SHARE = 0.15


@dataclass(frozen=True)
class PoolRow:
    """One row: the scene's seed, its caption, and what a crawl would have recorded."""

    sample_id: int
    seed: int
    text: str
    size: int
    rating: str | None
    similarity: float
    alive: bool

    def url(self, host: str) -> str:
        """Where a PoolServer at `host` (name or name:port) shows the picture, or a dead link."""
        return f"http://{host}/{'scene' if self.alive else 'gone'}/{self.seed}-{self.size}.png"


def pool_rows(count: int = DEFAULT_ROWS, seed: int = 0) -> Iterator[PoolRow]:
    """The rows of a pool, in order; a tenth of them repeat an earlier row's picture and caption under another size."""
    rng = generator(SCENE_SEEDS + seed)
    recent: list[PoolRow] = []
    for index in range(count):
        if recent and rng.random() < REPOST_SHARE:
            earlier = recent[int(rng.integers(len(recent)))]
            scene_seed, text = earlier.seed, earlier.text
        else:
            scene_seed = SCENE_SEEDS + int(rng.integers(1 << 40))
            text = pool_caption(scene_from_seed(scene_seed), rng)
        row = PoolRow(
            sample_id=seed * 1_000_000_000 + index,
            seed=scene_seed,
            text=text,
            size=PICTURE_SIZES[int(rng.integers(len(PICTURE_SIZES)))],
            rating=rating(float(rng.random())),
            similarity=round(0.28 + 0.1 * float(rng.random()), 4),
            alive=bool(rng.random() >= DEAD_SHARE),
        )
        if len(recent) < 1000:
            recent.append(row)
        else:
            recent[int(rng.integers(1000))] = row
        yield row


def pool_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene; one object is named by its bare class more often than in training, as in alt-text."""
    if len(scene.things) == 1 and rng.random() < CLASS_NAME_SHARE:
        words = single_words(scene.things[0], Detail(look=False), "", rng)
        return frame_words(words, scene.background if rng.random() < 0.3 else "", rng)
    return describe(scene, rng).text


def rating(roll: float) -> str | None:
    """A rating, or None for an unrated row."""
    for word, share in RATINGS:
        roll -= share
        if roll < 0:
            return word
    return None


def pool_table(rows: list[PoolRow], host: str) -> pa.Table:
    """Rows as a table with the LAION-400M columns."""
    import pyarrow as pa

    return pa.table(
        {
            "SAMPLE_ID": pa.array([row.sample_id for row in rows], pa.int64()),
            "URL": pa.array([row.url(host) for row in rows], pa.string()),
            "TEXT": pa.array([row.text for row in rows], pa.string()),
            "HEIGHT": pa.array([row.size for row in rows], pa.int64()),
            "WIDTH": pa.array([row.size for row in rows], pa.int64()),
            "LICENSE": pa.array(["?" for _ in rows], pa.string()),
            "NSFW": pa.array([row.rating for row in rows], pa.string()),
            "similarity": pa.array([row.similarity for row in rows], pa.float64()),
        }
    )


def write_pool(folder: Path, *, rows: int = DEFAULT_ROWS, seed: int = 0, host: str = DEFAULT_HOST) -> list[Path]:
    """Writes parquet files of 50,000 rows each; returns their paths. `host` is where a PoolServer will listen."""
    import pyarrow.parquet as pq

    if rows < 1:
        raise ConfigError(f"A pool needs at least one row, not {rows}.")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    source = pool_rows(rows, seed)
    for part in range((rows + ROWS_PER_FILE - 1) // ROWS_PER_FILE):
        wanted = min(ROWS_PER_FILE, rows - part * ROWS_PER_FILE)
        path = folder / f"pool-{part:05d}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(pool_table([next(source) for _ in range(wanted)], host), temporary, compression="zstd")
        paths.append(path)
    return paths


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
        address = ADDRESS.fullmatch(self.path.partition("?")[0])
        size = int(address[2]) if address else 0
        if address and IMAGE_SIZE <= size <= LARGEST_SIZE:
            status, media_type, content = (
                200,
                MEDIA_TYPES[address[3]],
                picture_bytes(int(address[1]), size, address[3]),
            )
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
