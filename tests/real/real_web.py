"""A loopback web of the real photos under real captions, of which as many links are dead as in the real crawl."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench.bench_fetch import crawl_failures
from tests.support import material
from tests.support.hostile_server import HostileServer
from tests.support.photo_pool import Photo, real_photos

DREAMBOOTH = "images/dreambooth"


class RealWeb:
    """Photos on a server, and caption tables whose links lead to them."""

    def __init__(self, server: HostileServer, seed: int = 0) -> None:
        self.server = server
        self.photos = [photo for photo in real_photos() if not photo.dreambooth]
        for number, photo in enumerate(self.photos):
            server.files[f"/file/{number}.jpg"] = photo.path.read_bytes()
        report = material.path("crawl/cc3m_validation_http_report.parquet")
        statuses = pq.read_table(report, columns=["status"])["status"].to_pylist()
        self.alive = statuses.count(200) / len(statuses)
        self._failures = crawl_failures()
        self._draw = random.Random(seed)

    def link(self) -> str:
        """A link to some photo, or a dead one."""
        if self._draw.random() >= self.alive:
            # No link twice, so that each is its row's own.
            return self.server.url(f"{self._draw.choice(self._failures)}/{self._draw.getrandbits(48)}")
        return self.server.url(f"file/{self._draw.randrange(len(self.photos))}.jpg")

    def photo(self, url: str) -> bytes:
        """What a link shows."""
        return self.server.files[url.removeprefix(self.server.url("").rstrip("/"))]

    def first_captions(self, file: Path, rows: int) -> Path:
        """A pool of `rows` real rows: people's captions of the photos first, then the web's, each with a link here."""
        captions: list[tuple[str, str]] = []
        for number, photo in enumerate(self.photos):
            if len(photo.captions) > 1:
                captions += [(caption, self.server.url(f"file/{number}.jpg")) for caption in photo.captions]
        for name in ("laion_img2dataset_10k", "cc3m_validation"):
            table = pq.read_table(material.path(f"captions/{name}.parquet"), columns=["TEXT"])
            captions += [(text, self.link()) for text in table["TEXT"].to_pylist()]
        table = {"TEXT": [text for text, _ in captions[:rows]], "URL": [url for _, url in captions[:rows]]}
        pq.write_table(pa.table(table), file)
        return file

    def with_links(self, files: Sequence[Path], folder: Path) -> Path:
        """Copies of whole caption tables, every link replaced by one that leads here; rows without keep none."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            table = pq.read_table(file)
            links = [url and self.link() for url in table["URL"].to_pylist()]
            place = table.schema.get_field_index("URL")
            pq.write_table(table.set_column(place, "URL", pa.array(links, pa.string())), folder / file.name)
        return folder


def pairs_of(pool: Path) -> set[tuple[str, str]]:
    """(link, caption as it is cleaned) of every row of a pool."""
    from cdkit.core.text import clean_caption

    found = set()
    for file in [pool] if pool.is_file() else sorted(pool.glob("*.parquet")):
        rows: list[dict[str, Any]] = pq.read_table(file, columns=["URL", "TEXT"]).to_pylist()
        found |= {(row["URL"], clean_caption(row["TEXT"])) for row in rows if row["URL"] and row["TEXT"]}
    return found


def photos_of(name: str) -> list[Photo]:
    """The real photos of one DreamBooth concept."""
    return [photo for photo in real_photos() if photo.dreambooth and photo.category == name]
