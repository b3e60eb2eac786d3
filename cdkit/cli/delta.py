"""`cdkit delta`: look into delta files, import other tools' files as one, and make them smaller."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cdkit.cli.options import command, stage_command
from cdkit.cli.output import Output, data_console, size, table
from cdkit.core.formatting import command_line
from cdkit.execute import Result

app = typer.Typer(help="Look into delta files, import other tools' files, and compress.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the `delta` group."""
    root.add_typer(app, name="delta")


@command(
    app,
    "inspect",
    help="Show a delta's tokens, method, base model, and per layer the size and rank of its change.",
    examples=["cdkit delta inspect runs/dog/tuned", "cdkit delta inspect merged --format json"],
)
def _inspect(
    output: Output, delta: Path = typer.Argument(..., help="The delta: a folder or file.", show_default=False)
) -> None:
    from cdkit.deltas.delta import delta_path, load_delta
    from cdkit.deltas.inspection import describe

    file = delta_path(delta)
    found = {"delta": str(delta), "bytes": file.stat().st_size, **describe(load_delta(file))}
    output.result(found, human=lambda console: _draw(found), quiet=found["norm"])


def _draw(found: Mapping[str, Any]) -> None:
    console = data_console()
    console.print(f"{found['method']} on {found['base']}, {size(found['bytes'])}, by cdkit {found['made_by']}")
    for token in found["tokens"]:
        rows = ", ".join(f"{name} {rows}" for name, rows in token["rows"].items())
        start = f" from {token['initializer']}" if token["initializer"] else ""
        console.print(f"token {token['token']}{start}: rows in {rows}", markup=False)
    for prompt in found["prompts"]:
        console.print(f"prompt {prompt!r}", markup=False)
    layers = [[one["layer"], one["norm"], one["rank"], " × ".join(map(str, one["shape"]))] for one in found["layers"]]
    if layers:
        console.print(table(["layer", "norm of the change", "rank", "shape"], layers))
    console.print(f"norm of all changes {found['norm']:.4g}")


def _data(result: Result) -> Mapping[str, Any]:
    return {"out": str(result.out), "state": result.state, **result.manifest.details}


def _imported(output: Output, result: Result) -> None:
    details = result.manifest.details
    tokens = ", ".join(details["tokens"]) or "none"
    data_console().print(
        f"{details['kind']}: {details['layers']} changed matrices, tokens: {tokens}: {result.out}", markup=False
    )
    output.hint(command_line("cdkit", "delta", "inspect", result.out))


def _compressed(output: Output, result: Result) -> None:
    details = result.manifest.details
    data_console().print(
        f"{size(details['bytes_before'])} → {size(details['bytes'])}, largest rank {details['rank']}, "
        f"largest error of a matrix {details['error']:.2%}: {result.out}",
        markup=False,
    )
    if details["whole"]:
        output.note(f"{len(details['whole'])} matrices stay whole: their factors would be no smaller.")


stage_command(
    app,
    "import",
    "delta-import",
    help="Turn Adobe's, diffusers' and the web UIs' files into a delta; nothing in them is executed.",
    examples=[
        "cdkit delta import delta.ckpt --base models/sd-v1-4 --category cat --out imported",
        "cdkit delta import trained/ --base models/sd-v1-5 --out imported",
        "cdkit delta import learned_embeds.bin --out imported",
    ],
    human=_imported,
    data=_data,
)
stage_command(
    app,
    "compress",
    "delta-compress",
    help="Store a delta's matrices as products of low rank, and measure the error.",
    examples=[
        "cdkit delta compress runs/dog/tuned --max-error 0.1 --out small",
        "cdkit delta compress runs/dog/tuned --rank 16 --out small",
    ],
    human=_compressed,
    data=_data,
)
