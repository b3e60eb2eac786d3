"""`cdkit publish`: bring a regularization set, a delta or a caption index to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from cdkit.cli.options import command
from cdkit.cli.output import Output, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line, size_text

if TYPE_CHECKING:
    from cdkit.fetching.hub import Repository
    from cdkit.publishing.publication import Publication

FILES_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add `publish`."""
    command(
        app,
        "publish",
        help="Publish a set, a delta or an index on the Hugging Face Hub. Interrupted, the same command goes on.",
        examples=[
            "cdkit publish sets/dog --repo me/dog-captions --dry-run",
            "cdkit publish tuned/dog --repo me/my-dog --licence creativeml-openrail-m --samples samples",
            "cdkit publish indexes/mine --repo me/captions --private",
        ],
    )(_publish)


def _publish(
    output: Output,
    path: Path = typer.Argument(..., metavar="SET|DELTA|INDEX", help="What to publish.", show_default=False),
    *,
    repo: str = typer.Option(..., "--repo", metavar="USER/NAME", help="The repository.", show_default=False),
    private: bool = typer.Option(False, "--private", help="Make the repository private."),
    with_images: bool = typer.Option(
        False, "--with-images", help="Of a set the pictures too, where every licence allows to pass them on."
    ),
    licence: str = typer.Option("other", "--licence", help="Licence for the card, as the hub names it."),
    samples: Path | None = typer.Option(
        None, "--samples", help="Samples for a delta's card [default: those of its run]."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be published, and send nothing."),
) -> None:
    from cdkit.fetching.hub import Repository
    from cdkit.publishing.preparing import PublishSettings, kind_of, prepare
    from cdkit.publishing.publication import REPOSITORIES
    from cdkit.publishing.upload import upload

    repository = Repository.parse(repo, REPOSITORIES[kind_of(path)])
    with tempfile.TemporaryDirectory(prefix="cdkit-publish-") as scratch:
        settings = PublishSettings(with_images, licence, samples)
        publication = prepare(path, repository.name, settings, Path(scratch))
        facts = _facts(publication, repository)
        for note in publication.notes:
            output.note(note)
        if dry_run:
            data = {**facts, "files": publication.sizes, "card": publication.card}
            output.result(data, human=lambda console: _draw(console, publication, repository), quiet=facts["bytes"])
            output.hint("Nothing was sent. The same command without --dry-run publishes this.")
            return
        done = upload(publication, repository, private=private, progress=TerminalProgress(output))
    said = f"{repository} is as it was: nothing had changed." if not done.new else f"{repository} is published."
    data = {**facts, "url": done.url, "commit": done.commit, "new": done.new, "removed": done.removed}
    output.result(data, human=lambda console: console.print(f"{said} {done.url}", markup=False), quiet=done.url)
    if publication.refused:
        output.note(f"Not published: {_reasons(publication)}.")
    output.hint(_use(publication, repository))


def _facts(publication: Publication, repository: Repository) -> dict[str, object]:
    return {
        "repository": repository.name,
        "kind": publication.kind,
        "rows": publication.rows,
        "refused": dict(publication.refused),
        "bytes": sum(publication.sizes.values()),
    }


def _reasons(publication: Publication) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in publication.refused.items())


def _draw(console: Console, publication: Publication, repository: Repository) -> None:
    rows = [(name, size_text(size)) for name, size in publication.sizes.items()]
    console.print(table(["file", "size"], rows[:FILES_SHOWN], title=f"{publication.kind} for the {repository}"))
    if len(rows) > FILES_SHOWN:
        console.print(f"and {len(rows) - FILES_SHOWN:,} more")
    if publication.rows:
        console.print(f"{publication.rows:,} rows; left out: {_reasons(publication) or 'none'}")
    console.print(f"\n{publication.card}", markup=False)


def _use(publication: Publication, repository: Repository) -> str:
    source = f"hub:{repository.name}"
    if publication.kind == "index":
        return command_line("cdkit", "retrieve", source, "a photo of a dog", "--out", "sets/dog")
    if publication.kind == "delta":
        base = () if publication.base == EMBEDDED else ("--base", publication.base)
        return command_line("cdkit", "sample", *base, "--delta", source, "--prompt", "…", "--out", "samples")
    return f"Its rows: datasets.load_dataset({repository.name!r}, split='train')"
