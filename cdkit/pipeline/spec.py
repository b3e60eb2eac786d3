"""The YAML of a pipeline: found by path or shipped name, interpolated, and checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import cdkit
from cdkit.config import StageConfig, describe_mistakes, did_you_mean, field_settings
from cdkit.errors import ConfigError, InputError
from cdkit.stages import STAGES

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TOP_KEYS = ("name", "description", "vars", "stages")


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline: its name there, the stage it runs, its settings, and the steps it takes input from."""

    name: str
    stage: str
    values: Mapping[str, Any]
    config: StageConfig
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `steps` are in an order in which they can run."""

    name: str
    description: str
    variables: Mapping[str, Any]
    steps: tuple[Step, ...]

    def descendants(self, name: str) -> set[str]:
        """The step called `name` and every step that depends on it."""
        found = {name}
        for step in self.steps:
            if found & set(step.needs):
                found.add(step.name)
        return found


@dataclass
class _Mistakes:
    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.lines.append(f"{where}: {what}")


def shipped_folder(kind: str) -> Path:
    """Where the package's own `pipelines` or `indexes` lie, in a wheel and in a checkout alike."""
    package = Path(cdkit.__file__).parent
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def shipped(kind: str) -> dict[str, Path]:
    """The shipped YAML files by name."""
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml"))}


def find(name: str, kind: str = "pipelines") -> Path:
    """The file of a pipeline or recipe given by path or shipped name; raises InputError with the names that exist."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped(kind)
    if path.stem in known and (path.name == path.stem or path.parent.name in ("", kind)):
        return known[path.stem]
    raise InputError(
        f"There is no {kind[:-1]} {name!r}: it is neither a file nor one that ships with cdkit"
        f"{did_you_mean(path.stem, known)}.",
        hint="cdkit pipeline list shows what ships with cdkit.",
    )


def load(path: Path, overrides: Mapping[str, Any], folder: Path) -> Pipeline:
    """Read and check a pipeline whose run goes to `folder`. Raises ConfigError with every mistake at once.

    overrides: `variable` or `step.key` → value, as given with --set.
    """
    document = _parse(path)
    mistakes = _Mistakes()
    _check_top(document, mistakes)
    variables = _variables(document.get("vars") or {}, mistakes)
    bodies = {str(name): body for name, body in _mapping(document.get("stages")).items()}
    _override(variables, bodies, overrides, mistakes)
    steps = [
        step
        for name, body in bodies.items()
        if (step := _step(name, body, variables, list(bodies), folder, mistakes)) is not None
    ]
    ordered = _order(steps, mistakes)
    if mistakes.lines:
        raise ConfigError(
            f"{path}: {len(mistakes.lines)} mistake(s):", problems=mistakes.lines, hint="Mend them and run again."
        )
    name = str(document.get("name", path.stem))
    return Pipeline(name, str(document.get("description", "")).strip(), variables, tuple(ordered))


def _parse(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Check the path and the permissions.") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", hint="Check indentation and quotes.") from error
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path} is not a pipeline: it must be a mapping with `stages:`.", hint="See cdkit pipeline show."
        )
    return document


def _check_top(document: Mapping[str, Any], mistakes: _Mistakes) -> None:
    for key in document:
        if key not in _TOP_KEYS:
            mistakes.add(str(key), f"unknown key{did_you_mean(str(key), _TOP_KEYS)}")
    if "name" in document and not (isinstance(document["name"], str) and _NAME.fullmatch(document["name"])):
        mistakes.add("name", "must be letters, digits, '-' and '_'")
    if not isinstance(document.get("stages"), dict) or not document["stages"]:
        mistakes.add("stages", "missing, empty or not a mapping of stage names")
    if not isinstance(document.get("vars") or {}, dict):
        mistakes.add("vars", "must be a mapping")


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _variables(given: Any, mistakes: _Mistakes) -> dict[str, Any]:
    """Variables may refer to variables above them."""
    variables: dict[str, Any] = {}
    for key, value in _mapping(given).items():
        variables[str(key)] = _interpolate(value, variables, f"vars.{key}", mistakes)
    return variables


def _override(
    variables: dict[str, Any], bodies: dict[str, Any], overrides: Mapping[str, Any], mistakes: _Mistakes
) -> None:
    for key, value in overrides.items():
        step, dot, name = key.partition(".")
        if dot and isinstance(bodies.get(step), dict):
            bodies[step] = {**bodies[step], name: value}
        elif not dot and key in variables:
            variables[key] = value
        else:
            known = [*variables, *(f"{body}.KEY" for body in bodies)]
            mistakes.add(f"--set {key}", f"there is no such variable{did_you_mean(key, known)}")


def _interpolate(value: Any, variables: Mapping[str, Any], where: str, mistakes: _Mistakes) -> Any:
    """Replace ${name}; a string that is nothing but one variable keeps that variable's type."""
    if isinstance(value, dict):
        return {
            str(_interpolate(key, variables, where, mistakes)): _interpolate(item, variables, where, mistakes)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_interpolate(item, variables, where, mistakes) for item in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in variables:
            mistakes.add(where, f"unknown variable ${{{name}}}{did_you_mean(name, variables)}")
            return value
    whole = _VARIABLE.fullmatch(value)
    if whole:
        return variables[whole[1]]
    return _VARIABLE.sub(lambda match: str(variables[match[1]]), value)


def _step(
    name: str, body: Any, variables: Mapping[str, Any], names: Sequence[str], folder: Path, mistakes: _Mistakes
) -> Step | None:
    where = f"stages.{name}"
    if not _NAME.fullmatch(name):
        mistakes.add(where, "a stage name must be letters, digits, '-' and '_'")
        return None
    if not isinstance(body, dict) or "run" not in body:
        mistakes.add(where, "must be a mapping with `run: STAGE`")
        return None
    stage = body["run"]
    if not isinstance(stage, str) or stage not in STAGES:
        mistakes.add(f"{where}.run", f"unknown stage {stage!r}{did_you_mean(str(stage), STAGES)}")
        return None
    values = {key: item for key, item in body.items() if key != "run"}
    before = len(mistakes.lines)
    values = _interpolate(values, variables, where, mistakes)
    config_class = STAGES[stage].config_class()
    if len(mistakes.lines) > before:
        # Its values cannot be checked without the variable, its keys can.
        for key in values.keys() - config_class.model_fields.keys():
            mistakes.add(f"{where}.{key}", f"unknown key{did_you_mean(key, config_class.model_fields)}")
        return None
    linked, needs = _link(values, config_class, names, folder)
    try:
        config = config_class.model_validate(linked)
    except ValidationError as error:
        mistakes.lines.extend(describe_mistakes(error, config_class, where=where))
        return None
    return Step(name, stage, values, config, tuple(needs))


def _link(
    values: Mapping[str, Any], config: type[StageConfig], names: Sequence[str], folder: Path
) -> tuple[dict[str, Any], list[str]]:
    """Replace step names in input fields by the folders those steps write."""
    linked: dict[str, Any] = dict(values)
    needs: list[str] = []

    def replace(value: Any) -> Any:
        if isinstance(value, str) and value in names:
            needs.append(value)
            return str(folder / value)
        if isinstance(value, list):
            return [replace(item) for item in value]
        if isinstance(value, dict):
            return {key: replace(item) for key, item in value.items()}
        return value

    for key, extra in field_settings(config).items():
        if extra.input is not None and key in linked:
            linked[key] = replace(linked[key])
    return linked, list(dict.fromkeys(needs))


def _order(steps: Sequence[Step], mistakes: _Mistakes) -> list[Step]:
    """Steps in file order, moved behind what they need; a cycle is a mistake."""
    by_name = {step.name: step for step in steps}
    ordered: list[Step] = []
    state: dict[str, str] = {}

    def visit(step: Step, trail: tuple[str, ...]) -> Iterator[None]:
        if state.get(step.name) == "done":
            return
        if state.get(step.name) == "open":
            mistakes.add(f"stages.{step.name}", f"needs itself: {' → '.join([*trail, step.name])}")
            return
        state[step.name] = "open"
        for need in step.needs:
            if need in by_name:
                yield from visit(by_name[need], (*trail, step.name))
        state[step.name] = "done"
        ordered.append(step)

    for step in steps:
        list(visit(step, ()))
    return ordered
