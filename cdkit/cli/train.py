"""`cdkit train`: teach a base model concepts from photos."""

from __future__ import annotations

import shlex

import typer

from cdkit.cli.options import stage_command
from cdkit.cli.output import Output, data_console, duration
from cdkit.stages import Result


def register(app: typer.Typer) -> None:
    """Add `train`."""
    stage_command(
        app,
        "train",
        "train",
        help="Teach a base model concepts from 4 to 20 photos each. Interrupted, the same command goes on.",
        examples=[
            "cdkit train --concept star=embedded:striped-star --out tuned/star",
            "cdkit train --base models/sd-v1-5 --concept dog=photos/dog --regularization dog=sets/dog --out tuned/dog",
            "cdkit train --concept star=photos/star mug=photos/mug --tokens picks --steps 500 --out tuned/both",
        ],
        human=_human,
        data=lambda result: {
            "steps": result.manifest.details["steps"],
            "seconds": result.manifest.details["seconds"],
            "final_loss": result.manifest.details["final_loss"],
            "out": str(result.out),
        },
    )


def _human(output: Output, result: Result) -> None:
    details = result.manifest.details
    words = ", ".join(f"{token['text']} {token['category']}" for token in details["tokens"])
    data_console().print(
        f"{details['steps']} steps in {duration(details['seconds'])}, loss {details['final_loss']:.4f}: "
        f"{result.out / 'delta.safetensors'}",
        markup=False,
    )
    base = result.manifest.details["base"]
    prompt = f"a photo of a {words.split(', ')[0]}" if words else details["prompts"][0]
    output.hint(f"cdkit sample --base {base} --delta {result.out} --prompt {shlex.quote(prompt)} --out samples")
