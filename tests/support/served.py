"""A search service that really runs: on loopback, in a thread of the test's own process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn

from cdkit.core.protocols import TextEncoder
from cdkit.embedded.pool import pool_rows
from cdkit.serving.access import Access
from cdkit.serving.app import SearchService
from cdkit.serving.catalogue import Catalogue, open_catalogue
from cdkit.serving.query_pictures import QueryPictures
from cdkit.serving.server import bind
from cdkit.serving.work_queue import WorkQueue
from tests.support.photo_pool import PoolPicture, index_of


def pool_index(folder: Path, host: str, encoder: TextEncoder, rows: int = 2500) -> Path:
    """An index over captions of the embedded world whose pictures a PoolServer at `host` draws."""
    return index_of(folder, [PoolPicture(row.text, row.url(host)) for row in pool_rows(rows)], encoder)


@dataclass
class Running:
    """An application behind uvicorn; a context. client: sends requests to it."""

    app: Any
    address: Any

    def __enter__(self) -> Running:
        config = uvicorn.Config(self.app, lifespan="on", log_config=None, server_header=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.address.listener]}, daemon=True
        )
        self.thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(30)

    @property
    def url(self) -> str:
        return str(self.address.url())


@dataclass
class Service:
    """What a search service is made of, by default as `cdkit serve` makes it."""

    catalogue: Catalogue
    threads: int = 2
    longest: int = 128
    rules: dict[str, Any] = field(default_factory=dict)
    allow_hosts: tuple[str, ...] = ()

    def run(self) -> Running:
        address = bind("127.0.0.1", 0)
        self.queue = WorkQueue(self.threads, self.longest)
        service = SearchService(self.catalogue, self.queue, QueryPictures(self.allow_hosts))
        return Running(service.app(Access(address.port, **self.rules)), address)


def serving(*folders: Path, encoder: TextEncoder | None = None, **settings: Any) -> Running:
    """A service of these indexes, ready to be entered."""
    return Service(open_catalogue(folders, {}, encoder=encoder), **settings).run()
