"""Commands generated from config classes: one option per field, so that CLI, YAML and Python API never differ."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from cdkit.cli.output import Format, Output
from cdkit.cli.progress import progress_for
from cdkit.config import Setting, StageConfig, field_settings, parse_config
from cdkit.errors import ConfigError, PartialError
from cdkit.stages import STAGES, Result, execute

Parameter = inspect.Parameter


@dataclass
class Session:
    """What the outermost handler needs to know of the command under way: how to report its errors."""

    output: Output
    debug: bool = False


SESSION: ContextVar[Session | None] = ContextVar("session", default=None)


class ManyValuesCommand(TyperCommand):
    """Lets a repeatable option take several values at once, as shells expand globs: `--captions a.csv b.csv`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {
            name
            for option in self.params
            if getattr(option, "multiple", False)
            for name in getattr(option, "opts", ())
        }
        return super().parse_args(ctx, list(_spread(args, repeatable)))


def _spread(arguments: Sequence[str], repeatable: set[str]) -> Iterator[str]:
    current, fresh = "", False
    for position, argument in enumerate(arguments):
        if argument == "--":
            yield from arguments[position:]
            return
        if argument.startswith("-") and argument != "-":
            name, _, value = argument.partition("=")
            current, fresh = (name, not value) if name in repeatable else ("", False)
        elif current and not fresh:
            yield current
        else:
            fresh = False
        yield argument


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
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def run(**values: Any) -> None:
            with session(values.pop("format"), values.pop("debug")) as output:
                function(output, **values)

        _register(app, name, run, [*own, *common_parameters()], help, examples)
        return function

    return register


def stage_command(
    app: typer.Typer,
    name: str,
    stage: str,
    *,
    examples: Sequence[str],
    human: Callable[[Output, Result], None],
    data: Callable[[Result], Mapping[str, Any]],
    help: str = "",
    extra: Sequence[Parameter] = (),
    choose: Callable[[StageConfig, Mapping[str, Any]], tuple[str, StageConfig]] | None = None,
) -> None:
    """Register the command of a stage, with one option per field of its config class, --out and --force.

    extra: further options; choose: picks the stage and config to run from the config and the extra options' values.
    """
    config_class = STAGES[stage].config_class()
    fields = config_parameters(config_class)
    extra_names = [parameter.name for parameter in extra]

    def run(**values: Any) -> None:
        with session(values.pop("format"), values.pop("debug")) as output:
            out, force = Path(values.pop("out")), values.pop("force")
            further = {key: values.pop(key) for key in extra_names}
            config = config_from_options(config_class, values)
            chosen, config = choose(config, further) if choose else (stage, config)
            result = execute(chosen, config, out, progress=progress_for(output), force=force)
            report_result(output, result, human, data)

    own = [
        _option("out", Path, typer.Option(..., "--out", help="The folder to make.", show_default=False)),
        _option("force", bool, typer.Option(False, "--force", help="Make it again, replacing what the folder holds.")),
    ]
    text = help or STAGES[stage].summary.capitalize() + "."
    _register(app, name, run, [*fields, *extra, *own, *common_parameters()], text, examples)


def report_result(
    output: Output,
    result: Result,
    human: Callable[[Output, Result], None],
    data: Callable[[Result], Mapping[str, Any]],
) -> None:
    """Print a stage's result; raises PartialError after it when the stage fell short."""
    if result.state == "cached":
        output.note(f"{result.out} is up to date: nothing to do.")
    output.result(data(result), human=lambda _: human(output, result), quiet=result.out)
    if result.manifest.shortfall:
        # The result is printed already, and JSON must stay one object.
        SESSION.set(Session(Output("quiet")))
        raise PartialError(result.manifest.shortfall, hint="What was found is kept; the manifest counts the reasons.")


def config_parameters(config: type[StageConfig]) -> list[Parameter]:
    """One command-line parameter per field of a config class, positional ones first."""
    settings = field_settings(config)
    shown = [(name, info, settings[name]) for name, info in config.model_fields.items() if not settings[name].hidden]
    shown.sort(key=lambda entry: not entry[2].argument)
    return [_parameter(name, info, extra) for name, info, extra in shown]


def config_from_options(config: type[StageConfig], values: Mapping[str, Any]) -> StageConfig:
    """The validated config from parsed options; options not given keep the config's own defaults."""
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or value == []:
            continue
        given[name] = _pairs(name, value) if _kind(config.model_fields[name].annotation) is dict else value
    return parse_config(config, given)


def _pairs(name: str, entries: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not separator or not key or not value:
            raise ConfigError(
                f"--{name.replace('_', '-')} takes NAME=VALUE, not {entry!r}.", hint="Example: dog=photos/dog"
            )
        if key in pairs:
            raise ConfigError(f"--{name.replace('_', '-')} names {key!r} twice.", hint="Give each name once.")
        pairs[key] = value
    return pairs


def _parameter(name: str, info: FieldInfo, extra: Setting) -> Parameter:
    required = info.is_required()
    default = None if required or info.default in (PydanticUndefined, None) else info.default
    flag = extra.flag or f"--{name.replace('_', '-')}"
    help = info.description or ""
    kind = _kind(info.annotation)
    annotation: Any
    if extra.argument:
        annotation = list[str] if kind is list else _optional(kind, required)
        value = typer.Argument(
            ... if required else default, help=help, metavar=name.upper(), show_default=not required
        )
    elif kind in (list, dict):
        annotation = list[_item(info.annotation)] if kind is list else list[str]  # type: ignore[misc]
        metavar = "NAME=VALUE" if kind is dict else None
        shown = ", ".join(map(str, default)) if default else False
        value = typer.Option(... if required else [], flag, help=help, metavar=metavar, show_default=shown)
    elif kind is bool:
        annotation = bool
        value = typer.Option(default, f"{flag}/--no-{flag[2:]}" if default else flag, help=help)
    else:
        annotation = _optional(kind, required)
        value = typer.Option(... if required else default, flag, help=help, show_default=default is not None)
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


def _optional(kind: Any, required: bool) -> Any:
    return kind if required else (kind | None)


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
    run.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword}
    run.__name__ = name
    epilog = "Examples:\n\n" + "\n\n".join(f"  {example}" for example in examples)
    app.command(name, help=help, epilog=epilog, cls=ManyValuesCommand)(run)
