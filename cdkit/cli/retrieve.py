"""`cdkit retrieve`: find a concept's regularization set."""

from __future__ import annotations

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.core.formatting import duration_text
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `retrieve`."""
    stage_command(
        app,
        "retrieve",
        "retrieve",
        help="Find, download and curate images whose captions are like a prompt; ends with 5 when there are fewer.",
        examples=[
            'cdkit retrieve indexes/embedded "a photo of a star" --images embedded --out sets/star',
            'cdkit retrieve indexes/laion400m "a photo of a dog" "a picture of a puppy" --exclude-like photos/dog '
            "--per-host 5 --out sets/dog",
            'cdkit retrieve indexes/mine "a photo of a mug" --fill generated --base models/sd-v1-5 --out sets/mug',
        ],
        human=_human,
        data=lambda result: {
            **{name: result.manifest.details[name] for name in ("asked", "accepted", "tried", "rejected")},
            "out": str(result.out),
        },
    )


def _human(output: Output, result: Result) -> None:
    details = result.manifest.details
    console = data_console()
    rows = [(entry["step"], entry["count"]) for entry in details["funnel"]]
    rows += [(f"left out: {reason}", number) for reason, number in details["rejected"].items()]
    console.print(table(["", "images"], rows))
    console.print(
        f"{details['accepted']:,} of {details['asked']:,} images in {duration_text(result.seconds)}, with captions of "
        f"similarity {details['threshold']:g} or more: {result.out}",
        markup=False,
    )
    output.hint(f"Look at {result.out / 'contact_sheet.png'}")
