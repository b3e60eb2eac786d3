"""The pages and what belongs to them, read into memory when a service starts: a request chooses among them by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.report.page import TEMPLATES
from cdkit.serving.access import POLICY

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

FOLDER = Path(__file__).parent / "pages"
# The look of the report, which the pages share.
LOOK = TEMPLATES / "report.css"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}


def _contents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (LOOK, *FOLDER.iterdir()) if path.suffix in KINDS}


@dataclass(frozen=True)
class Pages:
    """The pages of this package. Nothing of a request gets into them: they ask for data with scripts of their own."""

    contents: dict[str, bytes] = field(default_factory=_contents)

    def routes(self, page: str) -> list[Route]:
        """`page` at `/`, and the styles and scripts of all pages."""
        from starlette.routing import Route

        async def home(request: Request) -> Response:
            # Only where the reader asked for them may pictures come from elsewhere, and then no scripts with them.
            images = "'self' http: https:" if request.query_params.get("pictures") == "on" else "'self'"
            return self._answer(page, {"Content-Security-Policy": POLICY.format(images=images)})

        async def asset(request: Request) -> Response:
            return self._answer(request.path_params["name"], {})

        return [Route("/", home), Route("/assets/{name}", asset)]

    def _answer(self, name: str, headers: dict[str, str]) -> Response:
        from starlette.responses import Response

        content = self.contents.get(name)
        if content is None or (name.endswith(".html") and not headers):
            return Response("There is nothing here.", 404, media_type="text/plain")
        return Response(content, headers=headers, media_type=KINDS[Path(name).suffix])
