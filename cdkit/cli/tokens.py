"""`cdkit tokens`: count vocabulary tokens, pick rare ones, explain a word."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cdkit.cli.options import FORCE, OUT, command, config_command, end_short, report_result, stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import StageConfig
from cdkit.core.formatting import command_line, duration_text
from cdkit.execute import Result, execute
from cdkit.stages import STAGES

app = typer.Typer(help="Count vocabulary tokens, pick rare ones, explain a word.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the `tokens` group."""
    root.add_typer(app, name="tokens")


def _print_counted(output: Output, result: Result) -> None:
    details = result.manifest.details
    rows = [
        (entry["tokenizer"], entry["tokens"], entry["distinct"], entry["vocabulary"]) for entry in details["towers"]
    ]
    console = data_console()
    console.print(table(["tokenizer", "tokens", "distinct", "vocabulary"], rows))
    console.print(
        f"over {details['rows']:,} of {details['available']:,} caption rows in {duration_text(result.seconds)}"
    )
    output.hint(command_line("cdkit", "tokens", "rare", "--counts", result.out))


stage_command(
    app,
    "count",
    "token-counts",
    help="Count every vocabulary token over a seeded sample of caption rows.",
    examples=[
        "cdkit tokens count --index indexes/embedded --out counts/embedded",
        "cdkit tokens count --captions 'laion400m/*.parquet' --sample 200000 --out counts/laion400m",
    ],
    human=_print_counted,
    data=lambda result: {"state": result.state, "out": str(result.out), **result.manifest.details},
)


def _rare(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    if further["out"] is not None:
        result = execute("tokens", config, further["out"], progress=TerminalProgress(output), force=further["force"])
        report_result(output, result, lambda _, done: _draw_picks(data_console(), done.manifest.details), _picks_of)
        return
    with tempfile.TemporaryDirectory() as scratch:
        manifest = execute("tokens", config, Path(scratch) / "picks", progress=TerminalProgress(output)).manifest
    picks = {name: value for name, value in manifest.details.items() if name != "tokenizer"}
    words = "\n".join(pick["token"] for pick in picks["picks"])
    output.result(picks, human=lambda console: _draw_picks(console, picks), quiet=words)
    end_short(manifest.shortfall, hint="Widen --min-count and --max-count, or take a larger --sample.")


def _picks_of(result: Result) -> dict[str, Any]:
    return {**result.manifest.details, "out": str(result.out)}


def _draw_picks(console: Console, picks: Mapping[str, Any]) -> None:
    rows = []
    for pick in picks["picks"]:
        near = ", ".join(
            f"{neighbour['token']} {neighbour['similarity']:.2f}" for neighbour in pick.get("neighbours", ())
        )
        rows.append((pick["token"], pick["token_id"], pick["count"], near))
    console.print(table(["token", "id", "count", "nearest"], rows))
    passed = sorted(picks["rejected"].items(), key=lambda item: -item[1])
    console.print("passed over: " + ", ".join(f"{number:,} {reason.replace('_', ' ')}" for reason, number in passed))


config_command(
    app,
    "rare",
    STAGES["tokens"].config_class(),
    _rare,
    help="Pick rare tokens to start modifier tokens from, by the paper's rule; every bound is an option.",
    examples=[
        "cdkit tokens rare --index indexes/embedded",
        "cdkit tokens rare --captions 'captions/*.parquet' --sample 200000 --limit 20",
        "cdkit tokens rare --counts counts/laion400m --min-count 1 --max-count 20 --out picks",
    ],
    extra=[
        OUT.replace(
            annotation=Path | None,
            default=typer.Option(None, "--out", help="Also keep the picks in this folder, for cdkit train --tokens."),
        ),
        FORCE,
    ],
)


def _explain(
    output: Output,
    words: list[str] = typer.Argument(..., metavar="WORD...", help="Words, or exact vocabulary entries."),
    tokenizer: str = typer.Option(
        "clip", "--tokenizer", help="clip, or a base model's folder or hub id, or transformers:FOLDER."
    ),
    counts: Path | None = typer.Option(None, "--counts", help="A folder of cdkit tokens count: says how often."),
) -> None:
    from cdkit.tokens.explain import explain_words

    explanations = explain_words(words, tokenizer, counts)

    def draw(_: Console) -> None:
        for explanation in explanations:
            print(explanation.sentence())

    output.result({"words": [explanation.as_json() for explanation in explanations]}, human=draw)


command(
    app,
    "explain",
    help="Say whether a word is one token, how often it occurs, and which tokens contain it, in every text encoder.",
    examples=[
        "cdkit tokens explain sks ohwx ktn",
        "cdkit tokens explain ohwx --tokenizer models/flux-dev",
        "cdkit tokens explain dog --counts counts/laion400m",
    ],
)(_explain)
