"""`cdkit export`: a delta as files for other tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, size, table
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `export`."""
    stage_command(
        app,
        "export",
        "export",
        help="Write a delta as files that diffusers, A1111, Forge, ComfyUI or sd-scripts load, with its tokens.",
        examples=[
            "cdkit export runs/dog/tuned --to diffusers-lora --max-error 0.05 --out exported/dog",
            "cdkit export runs/dog/tuned --to kohya-lora --rank 32 --precision fp16 --out exported/dog-webui",
            "cdkit export merged --to diffusers-pipeline --base models/sd-v1-5 --out models/sd-with-my-pets",
        ],
        human=_human,
        data=_data,
    )


def _data(result: Result) -> Mapping[str, Any]:
    return {"out": str(result.out), "state": result.state, **result.manifest.details}


def _human(output: Output, result: Result) -> None:
    from cdkit.deltas.formats.names import loading_hints

    details = result.manifest.details
    console = data_console()
    if details["to"] != "diffusers-pipeline":
        rows = [[name, size((result.out / name).stat().st_size)] for name in details["files"]]
        console.print(table(["file", "size"], rows))
    rank = f", rank {details['rank']}" if details["rank"] else ""
    console.print(
        f"{details['to']}: {size(details['bytes'])}{rank}, largest error of a matrix {details['error']:.2%}",
        markup=False,
    )
    for hint in loading_hints(details["to"], result.out, details["tokens"]):
        output.hint(hint)
