"""Who may ask: the Host and Origin of a request are checked, its token too, before anything else looks at it."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from cdkit.fetching.urls import split_url

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
READING = ("GET", "HEAD", "OPTIONS")
# Nothing in them is worth hiding, and old checks of health know no token.
OPEN_PATHS = ("/healthz", "/assets/")
# Other pages may read what these say: clip-retrieval's own page is served from another port.
SHARED_PATHS = ("/knn-service", "/indices-list", "/metadata")
# Scripts, styles and data of ours alone; pictures as the page needs them.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: {images}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# To a browser that asks before it posts for a page: JSON under its own name, and a token in a header, may come.
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type",
}


@dataclass(frozen=True)
class Access:
    """The rules of one service.

    port: that it listens on. host: the loopback address it listens at. open_to_all: it listens on more than that, so
    that any name may lead to it. token: what every request must know, None for none; change_token: what one must know
    that changes something. origins: further pages that may ask, `https://example.org`.
    """

    port: int
    open_to_all: bool = False
    host: str = "127.0.0.1"
    token: str | None = None
    change_token: str | None = None
    origins: frozenset[str] = frozenset()

    @property
    def hosts(self) -> frozenset[str]:
        names = {*LOOPBACK, self.host}
        return frozenset({*(f"{name}:{self.port}" for name in names), *(names if self.port == 80 else ())})

    def refusal(self, method: str, path: str, headers: dict[str, str], query: str) -> tuple[int, str] | None:
        """Status and reason for a request that is not let in; None for one that is."""
        host = headers.get("host", "").lower()
        # A name of somebody else's that leads here (DNS rebinding) would make their page ours.
        if not self.open_to_all and host not in self.hosts:
            return 421, f"This service answers to {', '.join(sorted(self.hosts))} only."
        if not self._may_come_from(path, headers, host):
            return 403, "Pages of other sites may not ask this service (see --allow-origin)."
        offered = parse_qs(query).get("token", [""])[0] or _bearer(headers)
        asks_first = method == "OPTIONS" and path in SHARED_PATHS
        needs_token = self.token is not None and not path.startswith(OPEN_PATHS) and not asks_first
        if needs_token and not _same(offered, self.token or ""):
            return 401, "Add ?token=… to the address: this service asks for the token it was started with."
        changes = method not in READING and path not in SHARED_PATHS
        if changes and not (self.change_token and _same(offered, self.change_token)):
            return 401, "This needs the token in the address that the command printed."
        return None

    def _may_come_from(self, path: str, headers: dict[str, str], host: str) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            parts = split_url(origin)
            if parts is not None and parts.netloc.lower() == host:
                return True
            return path in SHARED_PATHS and self.shares_with(origin)
        # Without an origin: another site's picture or frame; following a link to here is fine.
        cross = headers.get("sec-fetch-site") == "cross-site"
        return not cross or headers.get("sec-fetch-mode") == "navigate"

    def shares_with(self, origin: str) -> bool:
        """Whether a page of this origin may read the answers of clip-retrieval's protocol."""
        if origin in self.origins:
            return True
        parts = split_url(origin)
        if parts is None:
            return False
        return parts.scheme == "http" and (parts.hostname or "") in ("127.0.0.1", "localhost", "::1")


def _bearer(headers: dict[str, str]) -> str:
    # Clients send UTF-8, which servers read as Latin-1.
    sent = headers.get("authorization", "").removeprefix("Bearer ")
    return sent.encode("latin-1", "replace").decode("utf-8", "replace")


def _same(offered: str, expected: str) -> bool:
    return hmac.compare_digest(offered.encode(), expected.encode())


@dataclass
class AccessCheck:
    """Starlette's middleware for it: refuses, or lets in and adds the headers that every answer has."""

    app: ASGIApp
    access: Access = field(default_factory=lambda: Access(0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        added = dict(HEADERS)
        if "origin" in headers and path in SHARED_PATHS and self.access.shares_with(headers["origin"]):
            added |= {"Access-Control-Allow-Origin": headers["origin"], "Vary": "Origin"}
        else:
            added["Cross-Origin-Resource-Policy"] = "same-origin"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = {"Content-Security-Policy": POLICY.format(images="'self'"), **added}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.encode(), text.encode())
                        for name, text in extra.items()
                        if name.lower().encode() not in present
                    ),
                ]
            await send(message)

        from starlette.responses import JSONResponse, Response

        refused = self.access.refusal(scope["method"], path, headers, scope["query_string"].decode("latin-1"))
        if refused is not None:
            await JSONResponse({"message": refused[1]}, status_code=refused[0])(scope, receive, send_with_headers)
            return
        if scope["method"] == "OPTIONS" and "Access-Control-Allow-Origin" in added:
            await Response(status_code=204, headers=PREFLIGHT)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)
