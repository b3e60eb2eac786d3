"""`cdkit init`: asks what is needed, looks at what is there, and writes a first pipeline."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from cdkit.cli.options import command
from cdkit.cli.output import Output, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.errors import CdkitError

if TYPE_CHECKING:
    from cdkit.drafting.interview import Question


def register(app: typer.Typer) -> None:
    """Add `init`."""
    command(
        app,
        "init",
        help="Write a first pipeline: asks for photos, word, base model, captions and graphics card.",
        examples=[
            "cdkit init",
            "cdkit init --yes --photos embedded:striped-star --word star --out star.yaml",
            "cdkit init --yes --photos photos/dog --word dog --photos photos/vase --word vase --base models/sd-v1-5",
        ],
    )(_init)


def _init(  # noqa: PLR0917 - Typer's options
    output: Output,
    photos: list[str] = typer.Option(
        [], "--photos", help="A concept's photos: a folder, or embedded:NAME. Repeatable, one concept each."
    ),
    word: list[str] = typer.Option(
        [], "--word", help="The class word of a concept, such as dog; in the order of --photos. Repeatable."
    ),
    shows: list[str] = typer.Option(
        [], "--shows", help="What the photos show: thing, face or style; for all, or one for each. [default: thing]"
    ),
    base: str | None = typer.Option(
        None, "--base", help="The base model: embedded, a folder, a file or a hub id [default: what is at hand]."
    ),
    captions: list[str] = typer.Option(
        [], "--captions", help="Pool files, a built index, hub:USER/NAME, embedded or none [default: what is at hand]."
    ),
    keep: str | None = typer.Option(
        None, "--keep", help="What keeps the class word without pictures: distil or none [default: distil]."
    ),
    fit: str | None = typer.Option(
        None, "--fit", help="The graphics card's memory: 8GB, 12GB, …, auto or none [default: as it is here]."
    ),
    out: str | None = typer.Option(None, "--out", metavar="FILE", help="The file to write [default: WORD.yaml]."),
    yes: bool = typer.Option(False, "--yes", help="Ask nothing: take the defaults."),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there."),
) -> None:
    from cdkit.drafting.draft import commands, draft, refuse_existing, write_draft
    from cdkit.drafting.interview import Given, Interview

    given = Given(photos, word, shows, base or "", captions, keep or "", fit or "", out or "")
    asks = not yes and sys.stdin.isatty() and sys.stderr.isatty() and output.format != "quiet"
    interview = Interview(given, (lambda question: _ask(output, question)) if asks else None, TerminalProgress(output))
    answers = interview.answers()
    refuse_existing(answers.out, force=force)
    made = draft(answers)
    write_draft(made, answers.out, force=force)
    check, run = commands(answers.out)
    data = {
        "path": str(answers.out),
        "name": made.name,
        "check": check,
        "run": run,
        "concepts": [
            {"word": concept.word, "shows": concept.shows, "photos": concept.photos.as_json()}
            for concept in answers.concepts
        ],
        "base": answers.base.as_json(),
        "captions": {"kind": answers.captions.kind, "named": list(answers.captions.named)},
        "fit": answers.fit,
        "notes": interview.notes,
    }
    output.result(data, human=lambda console: console.print(f"wrote {answers.out}", markup=False), quiet=answers.out)
    output.hint(f"Check it: {check}")
    output.hint(f"Run it:   {run}")


def _ask(output: Output, question: Question) -> Any:
    """Put one question on the terminal until its answer holds; raises Abort for ctrl-C."""
    words = output.words
    words.print(f"\n{question.text}", markup=False, soft_wrap=False)
    if question.choices:
        choices = table(["", ""], [(f"{number}  {value}", said) for number, (value, said) in _numbered(question)])
        choices.show_header = False
        words.print(choices)
    while True:
        text = typer.prompt(question.option, default=question.default, err=True, show_default=bool(question.default))
        chosen = dict(_numbered(question)).get(text.strip())
        try:
            return question.check(chosen[0] if chosen is not None else text)
        except CdkitError as error:
            words.print(f"{error.message} {error.hint}", markup=False, style="yellow", soft_wrap=False)


def _numbered(question: Question) -> list[tuple[str, tuple[str, str]]]:
    """The choices behind the numbers by which they can be answered."""
    return [(str(number), choice) for number, choice in enumerate(question.choices, start=1)]
