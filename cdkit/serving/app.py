"""The search service: which path is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cdkit
from cdkit.serving.access import Access, AccessCheck
from cdkit.serving.catalogue import Catalogue
from cdkit.serving.endpoints import Endpoints, json_response, parse_json, read_body, told_as_json
from cdkit.serving.knn import answer_knn, answer_metadata, parse_knn, parse_metadata
from cdkit.serving.page_files import Pages
from cdkit.serving.query_pictures import QueryPictures
from cdkit.serving.searches import (
    MOST_RESULTS,
    answer_search,
    answer_similarities,
    csv_stream,
    parquet_stream,
    parse_query,
    retrieve_command,
    table_rows,
)
from cdkit.serving.work_queue import WorkQueue

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

# Each may take as long as a fetch does.
MOST_PICTURES_WAITING = 8


@dataclass
class SearchService:
    """Answers from a catalogue of indexes. pictures: embeds pictures as queries; picture_queue: of such requests."""

    catalogue: Catalogue
    queue: WorkQueue
    pictures: QueryPictures
    picture_queue: WorkQueue = field(default_factory=lambda: WorkQueue(1, MOST_PICTURES_WAITING))
    endpoints: Endpoints = field(init=False)

    def __post_init__(self) -> None:
        self.endpoints = Endpoints(self.queue)

    def app(self, access: Access) -> Starlette:
        """The ASGI application; its end ends the queue and the process that decodes pictures."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            yield
            self.queue.close()
            self.picture_queue.close()
            self.pictures.close()

        route = self.endpoints.route
        routes = [
            route("/knn-service", self.knn, "POST"),
            route("/metadata", self.metadata, "POST"),
            route("/indices-list", self.indices),
            route("/metrics", self.metrics),
            route("/search", self.search),
            route("/similarities", self.similarities),
            route("/command", self.command),
            route("/healthz", self.health),
            *Pages().routes("search.html"),
        ]
        return told_as_json(
            Starlette(routes=routes, middleware=[Middleware(AccessCheck, access=access)], lifespan=life)
        )

    async def knn(self, request: Request) -> Response:
        content = await read_body(request)
        knn = await self.queue.run(lambda: parse_knn(parse_json(content)))
        # A picture's server may keep us waiting, and pictures come one by one: searches by text must not stand behind.
        queue = self.picture_queue if knn.by_picture else self.queue
        reply = await queue.run(lambda: answer_knn(knn, self.catalogue, self.pictures))
        return json_response(reply.content, headers=reply.headers)

    async def metadata(self, request: Request) -> Response:
        content = await read_body(request)
        reply = await self.queue.run(lambda: answer_metadata(parse_metadata(parse_json(content)), self.catalogue))
        return json_response(reply.content, headers=reply.headers)

    async def indices(self, request: Request) -> Response:
        return json_response(list(self.catalogue.indexes))

    async def search(self, request: Request) -> Response:
        from starlette.responses import StreamingResponse

        query = parse_query(request.query_params)
        if query.format != "json" and "limit" not in request.query_params:
            query = query.model_copy(update={"limit": MOST_RESULTS})
        page = await self.queue.run(lambda: answer_search(query, self.catalogue))
        if query.format == "json":
            return json_response(page.as_json())
        stream, kind = (csv_stream, "text/csv") if query.format == "csv" else (parquet_stream, "application/parquet")
        headers = {"Content-Disposition": f'attachment; filename="captions.{query.format}"'}
        return StreamingResponse(stream(table_rows(page)), media_type=kind, headers=headers)

    async def similarities(self, request: Request) -> Response:
        query = parse_query(request.query_params)
        return json_response(await self.queue.run(lambda: answer_similarities(query, self.catalogue)))

    async def command(self, request: Request) -> Response:
        query = parse_query(request.query_params)
        return json_response({"command": retrieve_command(query, self.catalogue.named(query.index)[1])})

    async def health(self, request: Request) -> Response:
        captions = await self.queue.run(self.catalogue.captions)
        return json_response({"status": "ok", "cdkit": cdkit.__version__, "captions": captions})

    async def metrics(self, request: Request) -> Response:
        from starlette.responses import Response

        encoders = {id(served.encoder): served.encoder.use for served in self.catalogue.indexes.values()}.values()
        gauges = {
            "queue_pending": self.queue.pending,
            "queue_refused": self.queue.refused,
            "encoded_texts": sum(use.encoded for use in encoders),
            "encoder_batches": sum(use.batches for use in encoders),
            "remembered_texts": sum(use.remembered for use in encoders),
        }
        return Response(self.endpoints.times.text(gauges), media_type="text/plain; version=0.0.4")
