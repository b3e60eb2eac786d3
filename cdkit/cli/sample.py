"""`cdkit sample` and `cdkit class-images`: pictures drawn by a base model, with what was learned, or as a set."""

from __future__ import annotations

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console
from cdkit.cli.retrieve import print_layouts
from cdkit.core.formatting import command_line, duration_text
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `sample` and `class-images`."""
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
        human=_sampled,
        data=lambda result: {
            "state": result.state,
            "out": str(result.out),
            "seconds": round(result.seconds, 3),
            **result.manifest.details,
        },
    )
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
        human=_drawn_set,
        data=lambda result: {
            **{name: result.manifest.details[name] for name in ("asked", "accepted", "generated", "rejected")},
            "out": str(result.out),
        },
    )


def _sampled(output: Output, result: Result) -> None:
    number = result.manifest.details["samples"]
    data_console().print(f"{number} images in {duration_text(result.seconds)}: {result.out / 'images'}", markup=False)
    output.hint(f"Look at {result.out / 'grid.png'}")


def _drawn_set(output: Output, result: Result) -> None:
    details = result.manifest.details
    data_console().print(
        f"{details['accepted']:,} images drawn in {duration_text(result.seconds)}: {result.out}", markup=False
    )
    print_layouts(details.get("layouts") or {})
    output.hint(f"Look at {result.out / 'contact_sheet.png'}")
    output.hint(f"{command_line('cdkit', 'train', '--regularization', f'NAME={result.out}')} …")
