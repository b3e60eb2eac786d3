"""The review of a set over HTTP: its pictures and facts, decisions that are written at once, and a map."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cdkit.core.errors import ConfigError, InputError, writing
from cdkit.core.formatting import command_line
from cdkit.core.manifest import mistakes
from cdkit.core.storage import alone_with, flush_names
from cdkit.pictures.folder import START, picture_format
from cdkit.retrieval.decisions import Decisions, read_decisions
from cdkit.serving.access import Access, AccessCheck
from cdkit.serving.endpoints import Endpoints, json_response, parse_json, read_body, told_as_json
from cdkit.serving.page_files import Pages
from cdkit.serving.picture_map import map_pictures
from cdkit.serving.review_set import ReviewSet
from cdkit.serving.work_queue import WorkQueue

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_KEYS = 100_000
THREADS, LONGEST_QUEUE = 4, 256
PICTURE_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


class DecisionRequest(BaseModel):
    """The body of `POST /decisions`."""

    model_config = ConfigDict(extra="forbid")

    action: Literal["reject", "restore"]
    keys: list[str] = Field(min_length=1, max_length=MOST_KEYS)


@dataclass
class DecisionFile:
    """The log on disk: read anew before every step, so that two windows or programs lose nothing of each other's."""

    path: Path
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> Decisions:
        return read_decisions(self.path) if self.path.exists() else Decisions()

    def change(self, step: Callable[[Decisions, str], Decisions]) -> Decisions:
        """Write what `step` makes of the log; the decision counts when this returns."""
        with self._turn, writing(self.path), alone_with(self.path):
            before = self.read()
            after = step(before, datetime.now(UTC).isoformat(timespec="seconds"))
            if after is not before and len(after.log) > len(before.log):
                after.write(self.path)
                flush_names(self.path.parent, below=False)
            return after


@dataclass
class Review:
    """One set under review."""

    reviewed: ReviewSet
    file: DecisionFile
    queue: WorkQueue = field(default_factory=lambda: WorkQueue(THREADS, LONGEST_QUEUE))

    def app(self, access: Access) -> Starlette:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            yield
            self.queue.close()

        route = Endpoints(self.queue).route
        routes = [
            route("/set", self.facts),
            route("/pictures/{key}", self.picture),
            route("/map", self.map),
            route("/decisions", self.decide, "POST"),
            route("/undo", self.undo, "POST"),
            *Pages().routes("review.html"),
        ]
        return told_as_json(
            Starlette(routes=routes, middleware=[Middleware(AccessCheck, access=access)], lifespan=life)
        )

    async def facts(self, request: Request) -> Response:
        return json_response(await self.queue.run(self._facts))

    def _facts(self) -> dict[str, Any]:
        reviewed = self.reviewed
        return {
            "name": reviewed.folder.resolve().name,
            "prompts": list(reviewed.prompts),
            "threshold": reviewed.threshold,
            "pictures": [picture.as_json() for picture in reviewed.pictures],
            "left_out": list(reviewed.left_out),
            "alike": reviewed.alike,
            "command": self.command(),
            **self._standing(self.file.read()),
        }

    def command(self) -> str:
        """What makes the set anew; where the set does not say which index it is from, that is left to be filled in."""
        prompts = reviewed.prompts if (reviewed := self.reviewed).prompts else ["PROMPT"]
        candidates = not any(picture.place for picture in reviewed.pictures)
        index = [reviewed.folder] if candidates else ["INDEX"]
        out = "sets/new" if candidates else f"{reviewed.folder}-reviewed"
        return command_line("cdkit", "retrieve", *index, *prompts, "--decisions", self.file.path, "--out", out)

    def _standing(self, decisions: Decisions) -> dict[str, Any]:
        rejected = decisions.rejected
        keys = [each.key for each in self.reviewed.pictures if each.decision().picture in rejected]
        undoable = decisions.undo("") is not decisions
        return {"rejected": keys, "decisions": str(self.file.path), "undoable": undoable}

    async def picture(self, request: Request) -> Response:
        from starlette.responses import Response

        picture = self.reviewed.by_key.get(request.path_params["key"])
        content = None if picture is None else await self.queue.run(picture.content)
        if content is None:
            return Response("There is no such picture.", 404, media_type="text/plain")
        kind = PICTURE_KINDS.get(picture_format(content[:START]) or "", "application/octet-stream")
        # The page asks with a part of its hash: what is at this address never changes.
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=86400"})

    async def map(self, request: Request) -> Response:
        points = await self.queue.run(lambda: self._points)
        return json_response({"points": points, "encoder": self.reviewed.encoder})

    @cached_property
    def _points(self) -> list[tuple[str, float, float]]:
        return map_pictures(self.reviewed)

    async def decide(self, request: Request) -> Response:
        try:
            wish = DecisionRequest.model_validate(parse_json(await read_body(request)))
        except ValidationError as error:
            raise ConfigError("; ".join(mistakes(error))) from error
        unknown = [key for key in wish.keys if key not in self.reviewed.by_key]
        if unknown:
            raise ConfigError(f"This set has no picture {unknown[0][:100]!r}.")
        pictures = [self.reviewed.by_key[key].decision() for key in wish.keys]
        return await self._changed(lambda log, now: log.decide(wish.action, pictures, now))

    async def undo(self, request: Request) -> Response:
        return await self._changed(lambda log, now: log.undo(now))

    async def _changed(self, step: Callable[[Decisions, str], Decisions]) -> Response:
        after = await self.queue.run(lambda: self.file.change(step))
        return json_response(self._standing(after))


def check_writable(path: Path) -> None:
    """Raise InputError where a log of decisions cannot be read, or could not be written later."""
    if path.exists():
        read_decisions(path)
    if not os.access(path.parent if path.parent.exists() else path.parent.parent, os.W_OK):
        raise InputError(f"{path} cannot be written.", hint="Give another file with --decisions.")
