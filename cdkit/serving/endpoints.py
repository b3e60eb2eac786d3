"""What every endpoint does alike: read a body within limits, wait in the queue, answer errors, count."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdkit.core.errors import CdkitError, ConfigError, NetworkError
from cdkit.core.formatting import json_text, without_credentials
from cdkit.serving.metrics import RequestTimes
from cdkit.serving.work_queue import BusyError, WorkQueue

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

# A picture in base64; recipes send a few hundred bytes.
MOST_BODY_BYTES = 24 << 20
# From the first byte of a body to its last.
BODY_SECONDS = 30.0
Handler = Callable[["Request"], Awaitable["Response"]]


class TooLargeError(ConfigError):
    """A request whose body is larger than any that means something."""


class TooSlowError(ConfigError):
    """A request whose body does not arrive: what came of it would be held for ever."""


@dataclass
class Endpoints:
    """Makes routes whose work waits in one queue, and whose errors have one shape."""

    queue: WorkQueue
    times: RequestTimes = field(default_factory=RequestTimes)

    def route(self, path: str, handler: Handler, method: str = "GET") -> Route:
        """A route that counts and times its requests, and says in JSON what went wrong.

        The shape is clip-retrieval's `message` and the command line's `error` in one object.
        """
        from starlette.requests import ClientDisconnect
        from starlette.responses import Response
        from starlette.routing import Route

        async def answer(request: Request) -> Response:
            started = time.monotonic()
            try:
                response = await handler(request)
            except ClientDisconnect:
                # Nobody is there to be answered.
                return Response(status_code=400)
            except BusyError as busy:
                response = problem("busy", str(busy), "", 429, {"Retry-After": str(busy.retry_after)})
            except CdkitError as error:
                # What is left of a body that was not read to its end is no next request.
                headers = {"Connection": "close"} if isinstance(error, TooLargeError | TooSlowError) else None
                response = problem(error.code, error.message, error.hint, _status(error), headers)
            except Exception as error:
                # One request must not end the service, and what it did wrong is no business of the asker's.
                traceback.print_exception(error)
                response = problem("bug", "The service failed at this request; its output says why.", "", 500)
            self.times.record(path, response.status_code, time.monotonic() - started)
            return response

        return Route(path, answer, methods=[method])


def _status(error: CdkitError) -> int:
    if isinstance(error, TooLargeError):
        return 413
    if isinstance(error, TooSlowError):
        return 408
    if isinstance(error, NetworkError):
        return 502
    return 400 if isinstance(error, ConfigError) else 503


def problem(code: str, message: str, hint: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error as an answer."""
    message, hint = without_credentials(message), without_credentials(hint)
    body = {"message": message, "error": {"code": code, "message": message, "hint": hint}}
    return json_response(body, status, headers)


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response whose JSON is written as everywhere."""
    from starlette.responses import Response

    return Response(json_text(content), status, headers, media_type="application/json")


def told_as_json(app: Starlette) -> Starlette:
    """The application, whose answer to a path or method it does not know has the shape of other errors."""
    from starlette.exceptions import HTTPException

    async def unknown(_: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        return problem("configuration", "There is nothing here that answers this.", "", status, headers)

    app.add_exception_handler(HTTPException, unknown)
    return app


async def read_body(request: Request) -> bytes:
    """The body, whatever its content type says; raises ConfigError when it is too large or does not arrive."""
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                content += block
                if len(content) > MOST_BODY_BYTES:
                    raise TooLargeError(f"A body has {MOST_BODY_BYTES:,} bytes at most.")
    except TimeoutError as error:
        raise TooSlowError(f"The body did not arrive within {BODY_SECONDS:g} s.") from error
    return bytes(content)


def parse_json(content: bytes) -> Any:
    """A body as JSON; raises ConfigError when it is none. A large one takes a second: call it in the queue."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError("The body must be JSON.") from error
