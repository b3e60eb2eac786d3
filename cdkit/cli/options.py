"""Commands generated from config classes: one option per field, so that CLI, YAML and Python API never differ."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cdkit.cli.output import SESSION, Format, Output, Session
from cdkit.cli.parsing import ManyValuesCommand
from cdkit.cli.progress import TerminalProgress
from cdkit.core.config import Setting, StageConfig, field_settings, parse_config
from cdkit.core.errors import ConfigError, InputError, PartialError
from cdkit.core.manifest import MANIFEST_NAME
from cdkit.execute import Result, execute
from cdkit.stages import STAGES

Parameter = inspect.Parameter


LONGEST_CHOICES = 40


def common_parameters() -> list[Parameter]:
    """The options every command has."""
    return [
        _option("format", Format, typer.Option("human", "--format", help="How to print the result.")),
        _option("debug", bool, typer.Option(False, "--debug", help="Show the traceback of an error.", hidden=True)),
    ]


@contextmanager
def session(format: Format, debug: bool) -> Iterator[Output]:
    """Make a command's output known to the error handler while the command runs."""
    current = Session(Output(format), debug)
    SESSION.set(current)
    yield current.output


def command(
    app: typer.Typer, name: str, *, help: str, examples: Sequence[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a hand-written command: its first parameter is the Output, the rest are its options.

    --format and --debug are added, and the examples shown under --help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def run(**values: Any) -> None:
            with session(values.pop("format"), values.pop("debug")) as output:
                function(output, **values)

        _register(app, name, run, [*parameters, *common_parameters()], help, examples)
        return function

    return register


def config_command(
    app: typer.Typer,
    name: str,
    config_class: type[StageConfig],
    run: Callable[[Output, StageConfig, Mapping[str, Any]], None],
    *,
    help: str,
    examples: Sequence[str],
    extra: Sequence[Parameter] = (),
    complete: Callable[[Output, dict[str, Any], Mapping[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Register a command with one option per field of a config class.

    run gets the Output, the validated config, and the values of the `extra` options. complete: adds to the values
    given on the command line before they are validated.
    """
    names = [parameter.name for parameter in extra]

    def invoke(**values: Any) -> None:
        with session(values.pop("format"), values.pop("debug")) as output:
            further = {key: values.pop(key) for key in names}
            chosen = given_values(config_class, values)
            if complete is not None:
                chosen = complete(output, chosen, further)
            run(output, parse_config(config_class, chosen), further)

    parameters = [*config_parameters(config_class), *extra, *common_parameters()]
    _register(app, name, invoke, parameters, help, examples)


def stage_command(
    app: typer.Typer,
    name: str,
    stage: str,
    *,
    help: str,
    examples: Sequence[str],
    human: Callable[[Output, Result], None],
    data: Callable[[Result], Mapping[str, Any]],
) -> None:
    """Register the command of a stage: its config's options, --out and --force."""

    def run(output: Output, config: StageConfig, further: Mapping[str, Any]) -> None:
        result = execute(stage, config, further["out"], progress=TerminalProgress(output), force=further["force"])
        report_result(output, result, human, data)

    config_class = STAGES[stage].config_class()
    config_command(app, name, config_class, run, help=help, examples=examples, extra=[OUT, FORCE])


def report_result(
    output: Output,
    result: Result,
    human: Callable[[Output, Result], None],
    data: Callable[[Result], Mapping[str, Any]],
) -> None:
    """Print a stage's result; raises PartialError after it when the stage fell short.

    Raises InputError for a result that was found done, and whose manifest does not say what the stage writes into it.
    """
    if result.state == "cached":
        output.note(f"{result.out} is up to date: nothing to do.")
    try:
        output.result(data(result), human=lambda _: human(output, result), quiet=result.out)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if result.state == "done":
            raise
        said = f"{type(error).__name__}: {error}"
        hint = "Restore it from a copy, or run the same command with --force."
        raise InputError(f"{result.out / MANIFEST_NAME} is damaged: {said}", hint=hint) from error
    end_short(result.manifest.shortfall, hint="What was found is kept; the manifest counts the reasons.")


def end_short(shortfall: str, *, hint: str) -> None:
    """End the command with exit code 5 when something was short; its result is printed already."""
    if shortfall:
        # JSON stays one object: the words go to stderr only.
        SESSION.set(Session(Output("quiet")))
        raise PartialError(shortfall, hint=hint)


def config_parameters(config: type[StageConfig]) -> list[Parameter]:
    """One command-line parameter per field of a config class: positional ones first, how it runs last."""
    settings = field_settings(config)
    shown = [(name, info, settings[name]) for name, info in config.model_fields.items() if not settings[name].hidden]
    shown.sort(key=lambda entry: (not entry[2].argument, entry[2].execution))
    return [_parameter(name, info, extra) for name, info, extra in shown]


def given_values(config: type[StageConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """What the command line sets of a config; options left at their default are left to the config's own."""
    chosen: dict[str, Any] = {}
    settings = field_settings(config)
    for name, value in values.items():
        info = config.model_fields[name]
        if value is None or value == [] or (not info.is_required() and value == info.default):
            continue
        chosen[name] = _pairs(_flag(name, settings[name]), value) if _kind(info.annotation) is dict else value
    return chosen


def _flag(name: str, extra: Setting) -> str:
    return extra.flag or f"--{name.replace('_', '-')}"


def _pairs(flag: str, entries: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator or not key or not value:
            raise ConfigError(f"{flag} takes NAME=VALUE, not {entry!r}.", hint="Example: dog=photos/dog")
        if key in pairs:
            raise ConfigError(f"{flag} names {key!r} twice.", hint="Give each name once.")
        pairs[key] = value
    return pairs


def _parameter(name: str, info: FieldInfo, extra: Setting) -> Parameter:
    required = info.is_required()
    default = None if required or info.default in (PydanticUndefined, None) else info.default
    flag = _flag(name, extra)
    # A missing option is found with all other mistakes, when the config is validated.
    help = (info.description or "") + (" [required]" if required and not extra.argument else "")
    kind = _kind(info.annotation)
    annotation: Any
    if extra.argument:
        annotation = list[str] if kind is list else kind if required else kind | None
        value = typer.Argument(
            ... if required else default, help=help, metavar=name.upper(), show_default=not required
        )
    elif kind in (list, dict):
        annotation = list[_item(info.annotation)] if kind is list else list[str]  # type: ignore[misc]
        metavar = "NAME=VALUE" if kind is dict else None
        shown = ", ".join(map(str, default)) if default else False
        value = typer.Option([], flag, help=help, metavar=metavar, show_default=shown)
    elif kind is bool:
        # A switch without a default of its own can be turned both ways; so can one that is on.
        both = default or info.default is None
        annotation = bool | None if info.default is None else bool
        value = typer.Option(default, f"{flag}/--no-{flag[2:]}" if both else flag, help=help)
    else:
        annotation = kind | None
        metavar = None
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        if len("|".join(choices)) > LONGEST_CHOICES:
            metavar, help = "NAME", f"{help} One of: {', '.join(choices)}."
        value = typer.Option(default, flag, help=help, metavar=metavar, show_default=default is not None)
    return _option(name, annotation, value)


def _kind(annotation: Any) -> Any:
    """list, dict, bool, int, float, str or a Literal: what the command line makes of a field's type."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _kind(inner[0])
    if origin in (list, tuple):
        return list
    if origin in (dict, Mapping):
        return dict
    if origin is Literal:
        return annotation
    return annotation if annotation in (bool, int, float) else str


def _item(annotation: Any) -> Any:
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _item(inner[0])
    return _kind(inner[0]) if inner else str


def _option(name: str, annotation: Any, value: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=annotation)


def _register(
    app: typer.Typer,
    name: str,
    run: Callable[..., None],
    parameters: Sequence[Parameter],
    help: str,
    examples: Sequence[str],
) -> None:
    keyword = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    for parameter in keyword:
        # Rich would take "[default: …]" in a help text for markup.
        parameter.default.help = re.sub(r"(?<!\\)\[", r"\[", parameter.default.help or "")
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    run.__name__ = name
    epilog = "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)
    app.command(name, help=help, epilog=epilog, cls=ManyValuesCommand)(run)


OUT = _option("out", Path, typer.Option(..., "--out", help="The folder to make.", show_default=False))
FORCE = _option("force", bool, typer.Option(False, "--force", help="Make it again, replacing what the folder holds."))
