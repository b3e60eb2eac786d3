"""`cdkit merge`: several deltas into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, duration, table
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import command_line
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `merge`."""
    stage_command(
        app,
        "merge",
        "merge",
        help="Merge deltas that were trained one by one into a single one, in closed form and without training.",
        examples=[
            "cdkit merge runs/dog/tuned runs/cat/tuned --base models/sd-v1-5 --index indexes/laion --out merged",
            "cdkit merge star heart --captions embedded --out merged",
            "cdkit merge star heart --captions captions.parquet --soft 1 --out merged",
        ],
        human=_human,
        data=_data,
    )


def _data(result: Result) -> Mapping[str, Any]:
    return {"out": str(result.out), "state": result.state, **result.manifest.details}


def _human(output: Output, result: Result) -> None:
    details = result.manifest.details
    console = data_console()
    if details["tokens"]:
        rows = [[entry["token"], entry["delta"], entry["was"]] for entry in details["tokens"]]
        console.print(table(["token", "from", "was"], rows))
    console.print(
        f"constraint residual {details['constraint_residual']:.1e}, drift {details['drift']:.2%} on "
        f"{details['captions']:,} captions, rank {details['rank']}, {duration(details['seconds'])}: {result.out}",
        markup=False,
    )
    prompts = details["prompts"]
    if prompts:
        options = [word for prompt in prompts[:2] for word in ("--prompt", prompt)]
        base = details.get("base", EMBEDDED)
        options = ["--base", base, "--delta", result.out, *options, "--out", "samples"]
        output.hint(command_line("cdkit", "sample", *options))
