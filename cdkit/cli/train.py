"""`cdkit train`: teach a base model concepts from photos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console

from cdkit.cli.options import FORCE, OUT, config_command, report_result
from cdkit.cli.output import Output, data_console, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import StageConfig
from cdkit.core.errors import ConfigError
from cdkit.core.formatting import command_line, duration_text, size_text
from cdkit.execute import Result, execute
from cdkit.inputs import with_local_copies
from cdkit.stages import STAGES

OUT_UNLESS_DRY = OUT.replace(
    annotation=OUT.annotation | None,
    default=typer.Option(None, "--out", help="The folder to make [required, but for --dry-run]."),
)
DRY_RUN = FORCE.replace(
    name="dry_run",
    default=typer.Option(False, "--dry-run", help="Check everything, estimate the memory, and train nothing."),
)


def register(app: typer.Typer) -> None:
    """Add `train`."""
    config_command(
        app,
        "train",
        STAGES["train"].config_class(),
        _run,
        help="Teach a base model concepts from 4 to 20 photos each. Interrupted, the same command goes on.",
        examples=[
            "cdkit train --concept star=embedded:striped-star --out tuned/star",
            "cdkit train --base models/sd-v1-5 --concept dog=photos/dog --regularization dog=sets/dog --out tuned/dog",
            "cdkit train --base models/sdxl --concept dog=photos/dog --batch-size 2 --dry-run",
        ],
        extra=[OUT_UNLESS_DRY, FORCE, DRY_RUN],
    )


def _run(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
    if further["dry_run"]:
        _dry_run(output, config)
        return
    if further["out"] is None:
        raise ConfigError("Missing option '--out'.", hint="Name the folder to make, or add --dry-run.")
    result = execute("train", config, further["out"], progress=TerminalProgress(output), force=further["force"])
    report_result(output, result, _human, _data)


def _data(result: Result) -> dict[str, Any]:
    details = result.manifest.details
    return {
        **{name: details[name] for name in ("steps", "seconds", "final_loss", "bytes", "bytes_per_concept")},
        "out": str(result.out),
    }


def _dry_run(output: Output, config: StageConfig) -> None:
    from cdkit.training.config import TrainConfig
    from cdkit.training.feasibility import dry_run

    assert isinstance(config, TrainConfig), "the config of the train stage"
    estimate = dry_run(with_local_copies(config), output.note)

    def draw(console: Console) -> None:
        batches = ("batch_size", "gradient_accumulation", "gradient_checkpointing")
        shown = ("method", "steps", *batches, "learning_rate", "resolution", "photos", "regularization")
        rows = [(name.replace("_", " "), estimate[name]) for name in (*shown, "parameters")]
        rows += [("prompt", prompt) for prompt in estimate["prompts"]]
        memory = [(f"memory for {name}", size_text(number)) for name, number in estimate["memory"].items()]
        free = [] if estimate["free"] is None else [(f"free on {estimate['device']}", size_text(estimate["free"]))]
        console.print(table(["", ""], [(name, str(value)) for name, value in (*rows, *memory, *free)]))

    output.result(estimate, human=draw, quiet=estimate["fits"])
    if estimate["lower"]:
        output.hint(estimate["lower"])


def _human(output: Output, result: Result) -> None:
    details = result.manifest.details
    words = ", ".join(f"{token['text']} {token['category']}" for token in details["tokens"])
    data_console().print(
        f"{details['steps']} steps in {duration_text(details['seconds'])}, loss {details['final_loss']:.4f}: "
        f"{result.out / 'delta.safetensors'}, {size_text(details['bytes_per_concept'])} a concept",
        markup=False,
    )
    base = result.manifest.details["base"]
    prompt = f"a photo of a {words.split(', ')[0]}" if words else details["prompts"][0]
    deltas = ("--base", base, "--delta", result.out)
    output.hint(command_line("cdkit", "sample", *deltas, "--prompt", prompt, "--out", "samples"))
