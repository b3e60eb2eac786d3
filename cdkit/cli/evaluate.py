"""`cdkit evaluate`, `compare` and `report`: score samples, compare methods, and the page of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from cdkit.cli.options import command, stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import parse_config
from cdkit.core.errors import OutputError
from cdkit.core.fingerprints import REPORT_STAGE
from cdkit.core.manifest import read_manifest
from cdkit.execute import Result, execute


def register(app: typer.Typer) -> None:
    """Add `evaluate`, `compare` and `report`."""
    stage_command(
        app,
        "evaluate",
        "evaluate",
        help="Score samples: text and image alignment, KID, drift, overfitting, each with a 95 % interval.",
        examples=[
            "cdkit evaluate --samples runs/star/images --concept star=embedded:striped-star --out scores/star",
            "cdkit evaluate --samples tuned --compare base=before --concept dog=photos/dog "
            "--encoder open_clip:ViT-B-32/openai --out scores/dog",
            "cdkit evaluate --samples tuned --concept dog=photos/dog --reference regularization/dog "
            "--base-samples before --preset paper --out scores/dog",
        ],
        human=_scored,
        data=lambda result: {**result.manifest.details, "out": str(result.out)},
    )
    stage_command(
        app,
        "compare",
        "compare",
        help="Put the scores of several methods in a table like the paper's Table 1, the paper's own beside them.",
        examples=[
            "cdkit compare --single custom-diffusion=scores/cd --single dreambooth=scores/db --out comparison",
            "cdkit compare --single custom-diffusion=cd/star,cd/mug --multi joint=scores/joint --out comparison",
            "cdkit compare --single alone=alone/star,alone/mug --single merged=both/star,both/mug --against alone "
            "--out change",
        ],
        human=_human_comparison,
        data=lambda result: {**result.manifest.details, "out": str(result.out)},
    )
    command(
        app,
        "report",
        help="Make the report of a run: one self-contained HTML page, Markdown, scores and a model card.",
        examples=[
            "cdkit report runs/one-concept",
            "cdkit report runs/one-concept --licence creativeml-openrail-m --out pages/star",
        ],
    )(_report)


def _scored(output: Output, result: Result) -> None:
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]] = result.manifest.details["sets"]
    many = len(sets) > 1
    rows = [
        (*([name] if many else []), metric, _number(score["value"]), _interval(score), score["n"])
        for name, metrics in sets.items()
        for metric, score in metrics.items()
    ]
    headings = [*(["samples"] if many else []), "score", "value", "95 % interval", "n"]
    data_console().print(table(headings, rows))
    output.hint(f"Every image's scores are in {result.out / 'scores.parquet'}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _interval(score: Mapping[str, Any]) -> str:
    if score.get("low") is None:
        return ""
    return f"{_number(score['low'])} to {_number(score['high'])}"


def _human_comparison(output: Output, result: Result) -> None:
    print((result.out / "table.md").read_text(encoding="utf-8"), end="")
    output.hint(f"The same as CSV: {result.out / 'table.csv'}")


def _report(
    output: Output,
    run: Path = typer.Argument(..., help="The folder of a run, finished or not."),
    out: Path | None = typer.Option(None, "--out", help="The folder to make [default: the run's own report]."),
    title: str | None = typer.Option(None, "--title", help="The page's title [default: the concepts]."),
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
    result = execute("report", config, target, progress=TerminalProgress(output), force=True, replace_other=True)
    page = result.out / "report.html"
    details = result.manifest.details
    output.result(
        {"report": str(page), **details},
        human=lambda _: print(page),
        quiet=page,
    )
    for line in details["missing"]:
        output.note(f"missing: {line}")
