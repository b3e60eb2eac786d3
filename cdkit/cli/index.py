"""`cdkit index import|embed|build|plan`: make caption indexes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import typer
from rich.console import Console

from cdkit.cli.index_use import print_index, register_use
from cdkit.cli.options import FORCE, OUT, command, config_command, report_result, stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import StageConfig
from cdkit.core.formatting import command_line, duration_text, size_text
from cdkit.execute import Result, execute, project
from cdkit.pipeline.spec import find
from cdkit.stages import STAGES

app = typer.Typer(help="Build, search, look into and change caption indexes.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the `index` group."""
    root.add_typer(app, name="index")


def result_data(result: Result) -> dict[str, Any]:
    """The JSON of a command that makes an index folder, or a part of one."""
    manifest = result.manifest
    return {
        "state": result.state,
        "out": str(result.out),
        "fingerprint": manifest.fingerprint,
        "counts": manifest.counts,
        "details": manifest.details,
        "seconds": round(result.seconds, 3),
    }


def _print_result(output: Output, result: Result) -> None:
    """Rows in, kept and rejected by reason; then what was built."""
    counts, details = result.manifest.counts, result.manifest.details
    rows = [("rows in", counts["in"]), ("kept", counts["kept"])]
    rows += [(f"rejected: {reason}", number) for reason, number in counts["rejected"].items()]
    console = data_console()
    console.print(table(["", "rows"], rows))
    if "captions" in details:
        console.print(
            f"{details['captions']:,} distinct captions in {duration_text(result.seconds)}: {result.out}", markup=False
        )
    if "index" in details:
        print_index(console, details)
        output.hint(command_line("cdkit", "index", "search", result.out, "a photo of a dog"))


stage_command(
    app,
    "import",
    "import",
    help="Read pools of captions (Parquet, CSV, TSV, JSON lines) into an index folder; clean, filter and deduplicate.",
    examples=[
        "cdkit index import --captions my-captions.csv --caption-column text --out indexes/mine",
        "cdkit index import --captions 'laion400m/*.parquet' --pool laion400m --out indexes/laion400m",
    ],
    human=_print_result,
    data=result_data,
)
stage_command(
    app,
    "embed",
    "embed",
    help="Import pools and embed every distinct caption, in one folder.",
    examples=[
        "cdkit index embed --captions my-captions.csv --encoder embedded --out indexes/mine",
        "cdkit index embed --captions 'pool/*.parquet' --engine ray --out indexes/pool",
    ],
    human=_print_result,
    data=result_data,
)


def _with_recipe(output: Output, values: dict[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's settings under what the command line gives; its warnings are shown."""
    if further["recipe"] is None:
        return values
    from cdkit.index.plan import read_recipe

    recipe = read_recipe(find(further["recipe"], "indexes"))
    for warning in recipe.warnings:
        output.note(f"{recipe.name}: {warning}")
    return recipe.values(values)


def _build(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    stage = further["stop_after"] or "index"
    config = project(config, STAGES[stage].config_class())
    result = execute(stage, config, further["out"], progress=TerminalProgress(output), force=further["force"])
    report_result(output, result, _print_result, result_data)


config_command(
    app,
    "build",
    STAGES["index"].config_class(),
    _build,
    help="Build a caption index: import, embed and index in one folder. Run it again to go on where it stopped.",
    examples=[
        "cdkit index build --captions my-captions.csv --out indexes/mine",
        "cdkit index build --captions 'laion400m/*.parquet' --pool laion400m --encoder open_clip:ViT-L-14/openai "
        "--out indexes/laion400m",
        "cdkit index build --recipe embedded --out indexes/embedded",
    ],
    extra=[
        OUT.replace(
            name="stop_after",
            annotation=Literal["import", "embed"] | None,
            default=typer.Option(None, "--stop-after", help="Stop when this part is done."),
        ),
        OUT.replace(
            name="recipe",
            annotation=str | None,
            default=typer.Option(None, "--recipe", help="Settings for a known pool: a file, or a name in indexes/."),
        ),
        OUT,
        FORCE,
    ],
    complete=_with_recipe,
)


def _query_time(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration_text(seconds)


def _plan(
    output: Output,
    rows: int = typer.Option(..., "--rows", help="Captions to index."),
    dim: int = typer.Option(..., "--dim", help="Dimension of the encoder: 512 for ViT-B, 768 for ViT-L."),
    bytes_per_caption: int = typer.Option(48, "--bytes-per-caption", help="Bytes of one compressed embedding."),
) -> None:
    from cdkit.index.plan import plan_index

    plan = plan_index(rows, dim, bytes_per_caption)

    def draw(console: Console) -> None:
        headings = [
            "",
            "factory",
            "bytes/caption",
            "disk",
            "build RAM",
            "serve RAM",
            "points",
            "train",
            "add",
            "measure",
            "query",
        ]
        lines = [
            (
                "→" if choice.chosen else "",
                choice.factory,
                choice.bytes_per_caption.value,
                size_text(choice.disk.value),
                size_text(choice.build_memory.value),
                size_text(choice.serve_memory.value),
                int(choice.training_points.value),
                duration_text(choice.train_seconds.value),
                duration_text(choice.add_seconds.value),
                duration_text(choice.measure_seconds.value),
                _query_time(choice.query_seconds.value),
            )
            for choice in plan.choices
        ]
        console.print(table(headings, lines))
        console.print(
            "→ is what cdkit index build would make. Embedding the captions comes on top: "
            f"{duration_text(plan.embed_seconds.value)}."
        )
        console.print(
            "Every figure is estimated, the times from rates of this machine just now "
            f"({plan.rates.device}, {plan.rates.threads} threads):"
        )
        for name, rate in plan.rates.figures().items():
            console.print(f"  {name}: {rate.value:,.4g} {rate.unit} ({rate.basis})")
        for line in plan.advice:
            console.print(line)

    output.result(plan.as_json(), human=draw, quiet=next(choice.factory for choice in plan.choices if choice.chosen))


command(
    app,
    "plan",
    help="Say what an index would cost before it is built: disk, memory, time.",
    examples=[
        "cdkit index plan --rows 400000000 --dim 768",
        "cdkit index plan --rows 1000000 --dim 512 --format json",
    ],
)(_plan)
register_use(app)
