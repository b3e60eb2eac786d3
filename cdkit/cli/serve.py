"""`cdkit serve`: answer searches over HTTP, also those of clip-retrieval's clients."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from cdkit.cli.options import command
from cdkit.cli.output import Output
from cdkit.core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add `serve`."""
    command(
        app,
        "serve",
        help="Serve caption indexes: a search page, JSON, and clip-retrieval's protocol for its clients.",
        examples=[
            "cdkit serve indexes/mine",
            "cdkit serve --name laion_400m=indexes/mine --port 8080",
            "cdkit serve indexes/mine --host 0.0.0.0 --token a-long-secret",
        ],
    )(_serve)


def _serve(
    output: Output,
    index: list[Path] | None = typer.Argument(None, help="Index folders, called by their names."),
    *,
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at; 0.0.0.0 for all, with --token."),
    port: int = typer.Option(1234, "--port", help="Port to listen at; 0 takes a free one.", min=0, max=65535),
    name: list[str] = typer.Option(
        [], "--name", help="A further index by another name. Repeatable.", metavar="NAME=INDEX"
    ),
    token: str | None = typer.Option(None, "--token", help="What every request must have as ?token=…"),
    allow_origin: list[str] = typer.Option(
        [], "--allow-origin", help="A page elsewhere that may ask, as https://example.org. Repeatable."
    ),
    allow_host: list[str] = typer.Option(
        [], "--allow-host", help="HOST[:PORT] that image_url may lead to though it is not public. Repeatable."
    ),
    blocklist: Path | None = typer.Option(
        None, "--blocklist", help="File of URLs, and md5 of images, that never come out, one a line."
    ),
    threads: int | None = typer.Option(None, "--threads", help="Searches at once [default: one per CPU].", min=1),
    queue: int = typer.Option(128, "--queue", help="Requests at once; more are told to come again (429).", min=1),
) -> None:
    from cdkit.core.threads import thread_count
    from cdkit.fetching.blocklist import read_blocklist
    from cdkit.serving.access import Access
    from cdkit.serving.app import SearchService
    from cdkit.serving.catalogue import open_catalogue
    from cdkit.serving.query_pictures import QueryPictures
    from cdkit.serving.server import bind, require_server, require_token, serve
    from cdkit.serving.work_queue import WorkQueue

    require_server()
    require_token(host, token)
    blocked = read_blocklist(blocklist).exact() if blocklist else frozenset()
    catalogue = open_catalogue(index or [], _names(name), blocked=blocked)
    pictures = QueryPictures(tuple(allow_host))
    address = bind(host, port)
    access = Access(address.port, not address.is_loopback, host, token, origins=frozenset(allow_origin))
    if not address.is_loopback:
        output.note(f"Everybody who reaches this machine at port {address.port} and knows the token may search.")
    data = {"url": address.url(token), "indexes": catalogue.captions()}

    def draw(console: Console) -> None:
        for served, captions in catalogue.captions().items():
            console.print(f"{served}: {captions:,} captions", markup=False)
        console.print(f"Search page: {address.url(token)}", markup=False)
        console.print(f"clip-retrieval clients: {address.url()}knn-service", markup=False)

    output.result(data, human=draw, quiet=address.url(token))
    output.hint("Ctrl-C stops it.")
    serve(SearchService(catalogue, WorkQueue(threads or thread_count(), queue), pictures).app(access), address)


def _names(entries: list[str]) -> dict[str, Path]:
    names: dict[str, Path] = {}
    for entry in entries:
        name, _, folder = entry.partition("=")
        if not name or not folder or name in names:
            raise ConfigError(f"--name takes NAME=INDEX, each name once, not {entry!r}.")
        names[name] = Path(folder)
    return names
