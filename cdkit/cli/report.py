"""`cdkit report`: make the report of a run from the command line."""

from __future__ import annotations

from pathlib import Path

import typer

from cdkit.cli.options import command
from cdkit.cli.output import Output, progress_for
from cdkit.core.config import parse_config
from cdkit.core.errors import OutputError
from cdkit.core.fingerprints import REPORT_STAGE
from cdkit.core.manifest import read_manifest
from cdkit.execute import execute


def register(app: typer.Typer) -> None:
    """Add `report`."""
    command(
        app,
        "report",
        help="Make the report of a run: one self-contained HTML page, Markdown, scores and a model card.",
        examples=[
            "cdkit report runs/one-concept",
            "cdkit report runs/one-concept --licence creativeml-openrail-m --out pages/star",
        ],
    )(_report)


def _report(
    output: Output,
    run: Path = typer.Argument(..., help="The folder of a run, finished or not."),
    out: Path | None = typer.Option(None, "--out", help="The folder to make [default: the run's own report]."),
    title: str | None = typer.Option(None, "--title", help="The page's title [default: the pipeline's name]."),
    licence: str = typer.Option(
        "other", "--licence", help="Licence of the delta for the model card, as the hub names it."
    ),
) -> None:
    from cdkit.report.config import ReportConfig
    from cdkit.report.run_folder import report_folder

    config = parse_config(ReportConfig, {"run_folder": str(run), "title": title, "licence": licence})
    target = out or report_folder(run)
    held = read_manifest(target)
    if held is not None and held.stage != REPORT_STAGE:
        raise OutputError(f"{target} holds what stage {held.stage!r} made.", hint="Choose another --out.")
    # A run that is still going on changes without its manifests: the page is always made anew.
    result = execute("report", config, target, progress=progress_for(output), force=True, replace_other=True)
    page = result.out / "report.html"
    details = result.manifest.details
    output.result(
        {"report": str(page), **details},
        human=lambda _: print(page),
        quiet=page,
    )
    for line in details["missing"]:
        output.note(f"missing: {line}")
