"""`cdkit sample`: draw images from a base model, with what was learned on top."""

from __future__ import annotations

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, duration
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `sample`."""
    stage_command(
        app,
        "sample",
        "sample",
        help="Draw images: every prompt with every seed. Run again after an interruption, it draws what is missing.",
        examples=[
            'cdkit sample --prompt "a red star on the grass" --seeds 8 --out samples/star',
            "cdkit sample --base models/sd-v1-5 --prompts prompts.txt --scheduler dpm++ --out samples/sd",
            'cdkit sample --base models/sd --delta tuned --prompt "a <new1> dog in the snow" --out samples/snow',
        ],
        human=_human,
        data=lambda result: {
            "state": result.state,
            "out": str(result.out),
            "seconds": round(result.seconds, 3),
            **result.manifest.details,
        },
    )


def _human(output: Output, result: Result) -> None:
    number = result.manifest.details["samples"]
    data_console().print(f"{number} images in {duration(result.seconds)}: {result.out / 'images'}", markup=False)
    output.hint(f"Look at {result.out / 'grid.png'}")
