"""`cdkit index`: build, search and inspect caption indexes."""

from __future__ import annotations

from typing import Any

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, duration, table
from cdkit.stages import Result

app = typer.Typer(help="Build, search and look into caption indexes.", no_args_is_help=True)


def result_data(result: Result) -> dict[str, Any]:
    """The JSON of a stage that makes a dataset folder."""
    manifest = result.manifest
    return {
        "state": result.state,
        "out": str(result.out),
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "details": manifest.details,
        "seconds": round(result.seconds, 3),
    }


def print_counts(output: Output, result: Result) -> None:
    """A table of rows in, kept and rejected by reason."""
    counts = result.manifest.counts
    rows = [("rows in", counts["in"]), ("kept", counts["kept"])]
    rows += [(f"rejected: {reason}", number) for reason, number in counts["rejected"].items()]
    console = data_console()
    console.print(table(["", "rows"], rows))
    captions = result.manifest.details.get("captions")
    if captions is not None:
        console.print(f"{captions:,} distinct captions in {duration(result.seconds)}: {result.out}")


stage_command(
    app,
    "import",
    "import",
    help="Read pools of captions (Parquet, CSV, TSV, JSON lines) into an index folder; clean, filter and deduplicate.",
    examples=[
        "cdkit index import --captions my-captions.csv --caption-column text --out indexes/mine",
        "cdkit index import --captions 'laion400m/*.parquet' --pool laion400m --out indexes/laion400m",
    ],
    human=print_counts,
    data=result_data,
)
