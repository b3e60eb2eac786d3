"""`cdkit inspect`: what training changed, where the prompt's tokens look, and what a benchmark asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from cdkit.cli.options import FORCE, OUT, command, config_command, report_result, stage_command
from cdkit.cli.output import Output, data_console, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import StageConfig
from cdkit.core.errors import writing
from cdkit.core.formatting import command_line
from cdkit.core.storage import alone_with, write_text
from cdkit.evaluation.config import WeightChangeConfig
from cdkit.evaluation.weight_change import compare_weights
from cdkit.execute import Result, execute
from cdkit.stages import STAGES

app = typer.Typer(help="Look into weights, attention and benchmarks.", no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the `inspect` group."""
    root.add_typer(app, name="inspect")


def _weights(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    if further["out"] is not None:
        result = execute(
            "weight-change", config, further["out"], progress=TerminalProgress(output), force=further["force"]
        )
        report_result(
            output,
            result,
            lambda _, made: _print_groups(made.manifest.details["groups"]),
            lambda made: {**made.manifest.details, "out": str(made.out)},
        )
        output.hint(f"The plot is {result.out / 'weight_change.svg'}")
        return
    assert isinstance(config, WeightChangeConfig)
    _, groups = compare_weights(config, TerminalProgress(output))
    rows = [asdict(group) for group in groups]
    output.result({"base": config.base, "tuned": config.tuned, "groups": rows}, human=lambda _: _print_groups(rows))
    output.hint("Add --out DIR for a plot and a table of every parameter.")


def _print_groups(groups: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (g["group"], g["parameters"], g["values"], g["moved"], g["mean_rate"], g["largest_rate"], g["largest"])
        for g in groups
    ]
    headings = ["group", "parameters", "values", "moved", "mean rate", "largest", "in"]
    data_console().print(table(headings, rows))


config_command(
    app,
    "weights",
    STAGES["weight-change"].config_class(),
    _weights,
    help="Rate of change of weights per group (cross-attention, self-attention, other) between two checkpoints.",
    examples=[
        "cdkit inspect weights --base embedded --tuned runs/star/tuned",
        "cdkit inspect weights --base models/sd-v1-5 --tuned models/dreambooth --out weight-change",
    ],
    extra=[
        OUT.replace(
            annotation=Path | None,
            default=typer.Option(None, "--out", help="Also write the plot and a table of every parameter here."),
        ),
        FORCE,
    ],
)


def _attention(output: Output, result: Result) -> None:
    rows = [(entry["token"], entry["share"]) for entry in result.manifest.details["tokens"]]
    data_console().print(table(["token", "share of attention"], rows))
    output.hint(f"Look at {result.out / 'attention.png'}")


stage_command(
    app,
    "attention",
    "attention",
    help="Draw an image, and a strip of pictures of where each token of its prompt was looked at.",
    examples=[
        'cdkit inspect attention --prompt "a red star on the grass" --out attention/star',
        'cdkit inspect attention --base models/sd-v1-5 --delta dog --prompt "a <new1> dog" --out attention/dog',
    ],
    human=_attention,
    data=lambda result: {**result.manifest.details, "out": str(result.out)},
)


def _benchmark(
    output: Output,
    dataset: Path = typer.Argument(..., help="CustomConcept101's dataset.json or dataset_multiconcept.json."),
    concept: str | None = typer.Argument(None, help="One of its concepts [default: list them]."),
    word: list[str] = typer.Option(
        [], "--word", help="What stands for the concept in prompts, one per concept [default: '<new1> CLASS']."
    ),
    out: Path | None = typer.Option(None, "--out", help="Write the prompts to this file, for cdkit sample --prompts."),
) -> None:
    from cdkit.evaluation.protocol import find_entry, read_benchmark

    entries = read_benchmark(dataset)
    if concept is None:
        names = [entry.name for entry in entries]
        output.result({"concepts": names}, human=lambda _: print("\n".join(names)), quiet="\n".join(names))
        return
    entry = find_entry(entries, concept)
    prompts = entry.prompts(word or entry.modifier_words())
    if out is not None:
        with writing(out), alone_with(out):
            write_text(out, "\n".join(prompts) + "\n")
    benchmark = {
        "name": entry.name,
        "concepts": [
            {"category": concept.category, "photos": str(concept.photos), "prompt": concept.training_prompt}
            for concept in entry.concepts
        ],
        "prompts": prompts,
        "out": str(out) if out else None,
    }
    output.result(benchmark, human=lambda _: print("\n".join(prompts)), quiet="\n".join(prompts))
    concepts = [word for item in entry.concepts for word in ("--concept", f"{item.category}={item.photos}")]
    output.hint(f"{command_line('cdkit', 'train', *concepts)} …")
    output.hint("then cdkit sample --prompts FILE …")
    output.hint(f"then {command_line('cdkit', 'evaluate', *concepts, '--preset', 'paper')} …")


command(
    app,
    "benchmark",
    help="List a CustomConcept101 dataset, or print one concept's test prompts with its token filled in.",
    examples=[
        "cdkit inspect benchmark customconcept101/dataset.json",
        "cdkit inspect benchmark customconcept101/dataset.json pet_dog1 --out prompts.txt",
    ],
)(_benchmark)
