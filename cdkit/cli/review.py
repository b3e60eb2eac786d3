"""`cdkit review`: look at a set's pictures on a page, and reject some by hand."""

from __future__ import annotations

import secrets
from pathlib import Path

import typer

from cdkit.cli.options import command
from cdkit.cli.output import Output
from cdkit.core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add `review`."""
    command(
        app,
        "review",
        help="Look at a set's pictures on a page, and reject some: decisions for cdkit retrieve --decisions.",
        examples=[
            "cdkit review sets/dog",
            "cdkit review sets/dog --decisions reviews/dog.parquet --port 8080",
            'cdkit review indexes/mine "a photo of a dog" --decisions reviews/dog.parquet',
        ],
    )(_review)


def _review(
    output: Output,
    folder: Path = typer.Argument(..., metavar="SET|INDEX", help="A regularization set, or an index with prompts."),
    prompts: list[str] | None = typer.Argument(None, help="With an index: what its candidates should be like."),
    *,
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen at; 0.0.0.0 for all, with --token."),
    port: int = typer.Option(0, "--port", help="Port to listen at; 0 takes a free one.", min=0, max=65535),
    token: str | None = typer.Option(None, "--token", help="What every request must know [default: a random one]."),
    decisions: Path | None = typer.Option(
        None, "--decisions", help="File the decisions are kept in [default: decisions.parquet in the set]."
    ),
    encoder: str | None = typer.Option(
        None, "--encoder", help="Image encoder of the map [default: the CLIP that the set was found with]."
    ),
    alike_bits: int = typer.Option(
        12, "--alike-bits", help="Bits of 64 in which hashes of pictures that look alike differ.", min=0, max=32
    ),
    count: int = typer.Option(200, "--count", help="With an index: candidates to look at.", min=1),
    min_similarity: float | None = typer.Option(
        None, "--min-similarity", help="With an index: least similarity [default: the encoder's].", min=-1, max=1
    ),
) -> None:
    from cdkit.retrieval.decisions import DECISIONS_NAME
    from cdkit.serving.access import Access
    from cdkit.serving.review import DecisionFile, Review, check_writable
    from cdkit.serving.review_set import read_candidates_of, read_review_set
    from cdkit.serving.server import bind, require_server, require_token, serve

    require_server()
    require_token(host, token)
    if prompts and decisions is None:
        hint = "Add --decisions FILE: an index keeps none."
        raise ConfigError("Where should the decisions about these candidates go?", hint=hint)
    if prompts:
        reviewed = read_candidates_of(folder, prompts, count, min_similarity)
    else:
        reviewed = read_review_set(folder, encoder=encoder, alike_bits=alike_bits)
    file = decisions or folder / DECISIONS_NAME
    check_writable(file)
    secret = token or secrets.token_urlsafe(16)
    address = bind(host, port)
    access = Access(address.port, not address.is_loopback, host, secret, secret)
    url = address.url(secret)
    data = {"url": url, "pictures": len(reviewed.pictures), "decisions": str(file)}
    output.result(data, human=lambda console: console.print(f"Review: {url}", markup=False), quiet=url)
    output.hint(f"Decisions are kept in {file} at once. Ctrl-C stops the review.")
    serve(Review(reviewed, DecisionFile(file)).app(access), address)
