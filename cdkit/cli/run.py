"""`cdkit run` and `cdkit pipeline`: run, list, show, validate and copy pipelines; the schema of their YAML."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cdkit.cli.options import command, end_short
from cdkit.cli.output import Output, table
from cdkit.cli.progress import TerminalProgress
from cdkit.core.errors import ConfigError, OutputError, writing
from cdkit.core.formatting import command_line, duration_text, json_text, size_text
from cdkit.core.storage import alone_with, atomic_path
from cdkit.core.yaml_files import parse_yaml, read_yaml_text
from cdkit.pipeline import spec
from cdkit.pipeline.plan import Planned, plan
from cdkit.pipeline.runner import RunResult, forced_steps
from cdkit.pipeline.runner import run as run_pipeline
from cdkit.pipeline.schema import pipeline_schema
from cdkit.pipeline.watch import RunStatus
from cdkit.training.live_page import LIVE_NAME

pipeline_app = typer.Typer(help="List, show, check and copy pipelines.", no_args_is_help=True)

PIPELINE = typer.Argument(..., help="A pipeline file, or the name of a shipped one (see cdkit pipeline list).")
SET = typer.Option([], "--set", metavar="KEY=VALUE", help="Set a variable, or STAGE.KEY of one stage. Repeatable.")


def register(app: typer.Typer) -> None:
    """Add `run` and the `pipeline` group."""
    command(
        app,
        "run",
        help="Run a pipeline: what is done already is left alone, what is missing or stale is made.",
        examples=[
            "cdkit run quickstart",
            "cdkit run one-concept --set category=dog --set photos=photos/dog --out runs/dog",
            "cdkit run runs/dog.yaml --dry-run",
        ],
    )(_run)
    app.add_typer(pipeline_app, name="pipeline")


def _run(  # noqa: PLR0917 - Typer's options
    output: Output,
    pipeline: str = PIPELINE,
    set: list[str] = SET,
    out: Path | None = typer.Option(None, "--out", help="The run's folder [default: runs/NAME]."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be done, and do nothing."),
    from_stage: str | None = typer.Option(
        None, "--from", metavar="STAGE", help="Make this stage and what needs it again."
    ),
    force: bool = typer.Option(False, "--force", help="Make every stage again."),
    stop_after: str | None = typer.Option(None, "--stop-after", metavar="STAGE", help="Stop when this stage is done."),
    threads: int | None = typer.Option(
        None, "--threads", min=1, help="CPU threads of stages that do not say [default: one per CPU]."
    ),
) -> None:
    path = spec.find(pipeline)
    folder = out or spec.run_folder(path)
    loaded = spec.load(path, parse_overrides(set), folder)
    forced = forced_steps(loaded, force=force, from_step=from_stage)
    if dry_run:
        _print_plan(output, plan(loaded.up_to(stop_after) if stop_after else loaded, folder, forced))
        return
    progress = TerminalProgress(output)
    result = run_pipeline(
        loaded,
        folder,
        forced=forced,
        stop_after=stop_after,
        progress=progress,
        threads=threads,
        watch=_shown(output, progress),
    )
    output.result(result.as_json(), human=lambda console: _print_run(console, result), quiet=folder)
    if result.report:
        output.hint(f"The report is {result.report}")
    end_short("\n".join(result.shortfalls), hint="What was found is kept; the manifests count the reasons.")


def _shown(output: Output, progress: TerminalProgress) -> Callable[[RunStatus], None]:
    """Shows a run's status: where its page is, once there is anything to watch, and what the work is a part of."""
    told = False

    def show(status: RunStatus) -> None:
        nonlocal told
        if not told and any(stage.planned.state != "cached" for stage in status.stages):
            output.hint(f"To watch it: {status.folder / LIVE_NAME}")
            told = True
        progress.part_of(status.place(), status.left.text())

    return show


def parse_overrides(entries: Sequence[str]) -> dict[str, Any]:
    """`key=value` options as a mapping; values are read as YAML, so that numbers are numbers; else they are texts."""
    overrides: dict[str, Any] = {}
    for entry in entries:
        key, separator, text = entry.partition("=")
        if not separator or not key:
            raise ConfigError(f"--set takes KEY=VALUE, not {entry!r}.", hint="Example: --set category=dog")
        if any("\ud800" <= character <= "\udfff" for character in entry):
            raise ConfigError(f"--set {entry!r} holds bytes that are not UTF-8.", hint="Give text in UTF-8.")
        try:
            overrides[key] = parse_yaml(text).value
        except ConfigError:
            overrides[key] = text
    return overrides


def _print_plan(output: Output, planned: Sequence[Planned]) -> None:
    def draw(console: Console) -> None:
        rows = [
            (
                entry.step.name,
                entry.step.stage,
                {"cached": "cached", "stale": "stale, will run", "run": "will run"}[entry.state],
                size_text(entry.input_bytes) if entry.input_bytes is not None else "",
                size_text(entry.output_bytes) if entry.output_bytes is not None else "",
                entry.reason,
            )
            for entry in planned
        ]
        console.print(table(["stage", "run", "state", "input", "output", "why"], rows))

    output.result({"plan": [entry.as_json() for entry in planned]}, human=draw)


def _print_run(console: Console, result: RunResult) -> None:
    rows = [
        (name, entry.state, duration_text(entry.seconds), str(entry.out))
        for name, entry in zip(result.names, result.results, strict=True)
    ]
    console.print(table(["stage", "state", "time", "folder"], rows))


def _list(output: Output) -> None:
    pipelines = spec.shipped("pipelines")
    described = [(name, _description(path), str(path)) for name, path in pipelines.items()]
    output.result(
        {"pipelines": [{"name": name, "description": text, "path": path} for name, text, path in described]},
        human=lambda console: console.print(table(["pipeline", "what it does"], [entry[:2] for entry in described])),
        quiet="\n".join(pipelines),
    )
    output.hint("cdkit pipeline show NAME prints one with its variables.")


def _description(path: Path) -> str:
    return " ".join(str(spec.read_document(path).value.get("description", "")).split())


def _show(output: Output, pipeline: str = PIPELINE) -> None:
    path = spec.find(pipeline)
    text = read_yaml_text(path)
    output.result({"path": str(path), "yaml": text}, human=lambda _: print(text, end=""), quiet=path)


def _validate(output: Output, pipeline: str = PIPELINE, set: list[str] = SET) -> None:
    path = spec.find(pipeline)
    loaded = spec.load(path, parse_overrides(set), spec.run_folder(path))
    spec.check_inputs(loaded)
    steps = [{"name": step.name, "run": step.stage, "needs": list(step.needs)} for step in loaded.steps]
    output.result(
        {"pipeline": loaded.name, "valid": True, "stages": steps, "vars": dict(loaded.variables)},
        human=lambda console: console.print(
            table(["stage", "run", "needs"], [(step["name"], step["run"], ", ".join(step["needs"])) for step in steps])
        ),
        quiet="valid",
    )


def _copy(
    output: Output,
    pipeline: str = PIPELINE,
    target: Path = typer.Argument(..., help="The file to write."),
    force: bool = typer.Option(False, "--force", help="Replace a file that is there."),
) -> None:
    source = spec.find(pipeline)
    with writing(target):
        if target.is_dir():
            target = target / source.name
        if target.exists() and not force:
            raise OutputError(f"{target} exists.", hint="Choose another name, or add --force.")
        with alone_with(target), atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
    output.result({"path": str(target)}, human=lambda console: console.print(f"wrote {target}"), quiet=target)
    output.hint(command_line("cdkit", "run", target))


def _schema(output: Output) -> None:
    schema = pipeline_schema()
    text = json_text(schema, indent=2)
    output.result(schema, human=lambda _: print(text), quiet=text)


for _name, _function, _help, _examples in (
    (
        "list",
        _list,
        "List the pipelines that ship with cdkit.",
        ["cdkit pipeline list", "cdkit pipeline list --format json | jq -r '.pipelines[].name'"],
    ),
    (
        "show",
        _show,
        "Print a pipeline with its variables.",
        ["cdkit pipeline show quickstart", "cdkit pipeline show one-concept | less"],
    ),
    (
        "validate",
        _validate,
        "Check a pipeline; nothing is run or downloaded.",
        ["cdkit pipeline validate my.yaml", "cdkit pipeline validate one-concept --set base=embedded"],
    ),
    (
        "copy",
        _copy,
        "Copy a shipped pipeline to a file of your own.",
        ["cdkit pipeline copy quickstart my.yaml", "cdkit pipeline copy one-concept . --force"],
    ),
    (
        "schema",
        _schema,
        "Print the JSON schema of a pipeline's YAML, by which editors complete it.",
        ["cdkit pipeline schema > cdkit-pipeline.schema.json", "cdkit pipeline schema --format quiet"],
    ),
):
    command(pipeline_app, _name, help=_help, examples=_examples)(_function)
