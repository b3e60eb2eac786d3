"""`cdkit class-images`: a regularization set drawn by the base model."""

from __future__ import annotations

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, duration
from cdkit.core.formatting import command_line
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `class-images`."""
    stage_command(
        app,
        "class-images",
        "class-images",
        help="Draw a regularization set with the base model, where no real images can be had. Interrupted, the same "
        "command goes on.",
        examples=[
            'cdkit class-images "photo of a star" --count 50 --out sets/star',
            'cdkit class-images "photo of a dog" "a dog outdoors" --base models/sd-v1-5 --out sets/dog',
            'cdkit class-images "photo of a mug" --base models/sd --also-write diffusers --out sets/mug',
        ],
        human=_human,
        data=lambda result: {
            **{name: result.manifest.details[name] for name in ("asked", "accepted", "generated", "rejected")},
            "out": str(result.out),
        },
    )


def _human(output: Output, result: Result) -> None:
    details = result.manifest.details
    data_console().print(
        f"{details['accepted']:,} images drawn in {duration(result.seconds)}: {result.out}", markup=False
    )
    output.hint(f"Look at {result.out / 'contact_sheet.png'}")
    output.hint(f"{command_line('cdkit', 'train', '--regularization', f'NAME={result.out}')} …")
