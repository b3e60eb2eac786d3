"""Every function takes what its stage's config takes, with the same defaults, and nothing else."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any, Literal

import pytest
from pydantic_core import PydanticUndefined

import cdkit
from cdkit.stages import STAGES

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "index": cdkit.build_index,
    "retrieve": cdkit.retrieve,
    "train": cdkit.train,
    "merge": cdkit.merge,
    "sample": cdkit.sample,
    "evaluate": cdkit.evaluate,
    "report": cdkit.make_report,
}
# How a call runs, and where its result goes; a report is made anew each time.
RUNNING = {"out", "force", "progress"}
# Here the delta's own base is the default.
OTHER_DEFAULTS = {("merge", "base"), ("sample", "base")}
PARAMETERS = [(stage, name) for stage in FUNCTIONS for name in STAGES[stage].config_class().model_fields]


@pytest.mark.parametrize("stage", FUNCTIONS)
def test_a_function_has_one_parameter_for_each_setting(stage: str) -> None:
    parameters = inspect.signature(FUNCTIONS[stage]).parameters
    assert set(parameters) - RUNNING == set(STAGES[stage].config_class().model_fields)
    assert set(parameters) >= RUNNING - ({"force"} if stage == "report" else set())
    kinds = {parameter.kind for parameter in parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize(("stage", "name"), PARAMETERS)
def test_a_parameter_has_the_settings_default(stage: str, name: str) -> None:
    field = STAGES[stage].config_class().model_fields[name]
    default = inspect.signature(FUNCTIONS[stage]).parameters[name].default
    if (stage, name) in OTHER_DEFAULTS:
        assert default is None
    elif field.default is PydanticUndefined or (stage, name) == ("report", "run_folder"):
        assert default is inspect.Parameter.empty
    else:
        assert default == field.default or (not default and field.default in ([], {}))


@pytest.mark.parametrize(("stage", "name"), PARAMETERS)
def test_a_parameter_has_the_settings_type(stage: str, name: str) -> None:
    function = FUNCTIONS[stage]
    asked = typing.get_type_hints(function, localns={"Photos": object, "Place": object})[name]
    wanted = STAGES[stage].config_class().model_fields[name].annotation
    if _is_exact(wanted):
        assert asked == wanted


def _is_exact(annotation: Any) -> bool:
    """Whether a setting is a number, a switch or a choice: paths and lists are asked for in more forms."""
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    kinds = [annotation] if typing.get_origin(annotation) is Literal or not parts else parts
    return all(kind in (int, float, bool) or typing.get_origin(kind) is Literal for kind in kinds)
