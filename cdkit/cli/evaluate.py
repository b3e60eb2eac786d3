"""`cdkit evaluate` and `cdkit compare`: score samples, and put the scores of several methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.execute import Result


def register(app: typer.Typer) -> None:
    """Add `evaluate` and `compare`."""
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
        human=_human,
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
        ],
        human=_human_comparison,
        data=lambda result: {**result.manifest.details, "out": str(result.out)},
    )


def _human(output: Output, result: Result) -> None:
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]] = result.manifest.details["sets"]
    many = len(sets) > 1
    rows = [
        (*([name] if many else []), metric, _number(found["value"]), _interval(found), found["n"])
        for name, metrics in sets.items()
        for metric, found in metrics.items()
    ]
    headings = [*(["samples"] if many else []), "score", "value", "95 % interval", "n"]
    data_console().print(table(headings, rows))
    output.hint(f"Every image's scores are in {result.out / 'scores.parquet'}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _interval(found: Mapping[str, Any]) -> str:
    if found.get("low") is None:
        return ""
    return f"{_number(found['low'])} to {_number(found['high'])}"


def _human_comparison(output: Output, result: Result) -> None:
    print((result.out / "table.md").read_text(encoding="utf-8"), end="")
    output.hint(f"The same as CSV: {result.out / 'table.csv'}")
