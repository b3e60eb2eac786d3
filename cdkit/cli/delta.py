"""`cdkit merge`, `export` and `delta`: what becomes of deltas, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cdkit.cli.options import command, stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line, duration_text, size_text
from cdkit.execute import Result
from cdkit.inputs import local_copy

app = typer.Typer(help="Look into delta files, import other tools' files, and compress.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add `merge`, `export` and the `delta` group."""
    root.add_typer(app, name="delta")
    stage_command(
        root,
        "merge",
        "merge",
        help="Merge deltas that were trained one by one into a single one, in closed form and without training.",
        examples=[
            "cdkit merge runs/dog/tuned runs/cat/tuned --base models/sd-v1-5 --index indexes/laion --out merged",
            "cdkit merge star heart --captions embedded --out merged",
            "cdkit merge star heart --captions captions.parquet --soft 1 --out merged",
        ],
        human=_merged,
        data=_data,
    )
    stage_command(
        root,
        "export",
        "export",
        help="Write a delta as files that diffusers, A1111, Forge, ComfyUI or sd-scripts load, with its tokens.",
        examples=[
            "cdkit export runs/dog/tuned --to diffusers-lora --max-error 0.05 --out exported/dog",
            "cdkit export runs/dog/tuned --to kohya-lora --rank 32 --precision fp16 --out exported/dog-webui",
            "cdkit export merged --to diffusers-pipeline --base models/sd-v1-5 --out models/sd-with-my-pets",
        ],
        human=_exported,
        data=_data,
    )


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
    from cdkit.deltas.description import describe

    file = delta_path(local_copy("delta", str(delta)))
    description = {"delta": str(delta), "bytes": file.stat().st_size, **describe(load_delta(file))}
    output.result(description, human=lambda console: _draw(description), quiet=description["norm"])


def _draw(description: Mapping[str, Any]) -> None:
    console = data_console()
    method, base = description["method"], description["base"]
    console.print(f"{method} on {base}, {size_text(description['bytes'])}, by cdkit {description['made_by']}")
    for token in description["tokens"]:
        rows = ", ".join(f"{name} {rows}" for name, rows in token["rows"].items())
        start = f" from {token['initializer']}" if token["initializer"] else ""
        console.print(f"token {token['token']}{start}: rows in {rows}", markup=False)
    for prompt in description["prompts"]:
        console.print(f"prompt {prompt!r}", markup=False)
    layers = [
        (layer["layer"], layer["norm"], layer["rank"], " × ".join(map(str, layer["shape"])))
        for layer in description["layers"]
    ]
    if layers:
        console.print(table(["layer", "norm of the change", "rank", "shape"], layers))
    gates = {", ".join(layer["words"]): None for layer in description["layers"] if "words" in layer}
    for words in gates:
        console.print(f"acts only where these words stand: {words}", markup=False)
    console.print(f"norm of all changes {description['norm']:.4g}")


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
        f"{size_text(details['bytes_before'])} → {size_text(details['bytes'])}, largest rank {details['rank']}, "
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


def _merged(output: Output, result: Result) -> None:
    details = result.manifest.details
    console = data_console()
    if details["tokens"]:
        rows = [[entry["token"], entry["delta"], entry["was"]] for entry in details["tokens"]]
        console.print(table(["token", "from", "was"], rows))
    console.print(
        f"constraint residual {details['constraint_residual']:.1e}, drift {details['drift']:.2%} on "
        f"{details['captions']:,} captions, rank {details['rank']}, {duration_text(details['seconds'])}: {result.out}",
        markup=False,
    )
    prompts = details["prompts"]
    if prompts:
        options = [word for prompt in prompts[:2] for word in ("--prompt", prompt)]
        base = details.get("base", EMBEDDED)
        options = ["--base", base, "--delta", result.out, *options, "--out", "samples"]
        output.hint(command_line("cdkit", "sample", *options))


def _exported(output: Output, result: Result) -> None:
    from cdkit.deltas.exporting import loading_hints

    details = result.manifest.details
    console = data_console()
    if details["to"] != "diffusers-pipeline":
        rows = [[name, size_text((result.out / name).stat().st_size)] for name in details["files"]]
        console.print(table(["file", "size"], rows))
    rank = f", rank {details['rank']}" if details["rank"] else ""
    console.print(
        f"{details['to']}: {size_text(details['bytes'])}{rank}, largest error of a matrix {details['error']:.2%}",
        markup=False,
    )
    for hint in loading_hints(details["to"], result.out, details["tokens"], details.get("family", "")):
        output.hint(hint)
