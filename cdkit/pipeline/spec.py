"""The YAML of a pipeline: found by path or shipped name, interpolated, and checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import cdkit
from cdkit.core.config import InputKind, StageConfig, describe_mistakes, did_you_mean, field_settings, nearest
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.yaml_files import Document, read_yaml
from cdkit.pipeline.variables import CHOICE, Body, Mistakes, interpolate, repeat_stages, resolve_variables
from cdkit.stages import STAGES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_TOP_KEYS = ("name", "description", "vars", "stages")
WHEN_NEEDED = "when_needed"


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline: its name there, the stage it runs, its settings, and the steps it takes input from.

    whole_run: it takes the run's own folder, and so needs every step that runs another stage. when_needed: it is
    there only if another step takes input from it.
    """

    name: str
    stage: str
    values: Mapping[str, Any]
    config: StageConfig
    needs: tuple[str, ...] = ()
    whole_run: bool = False
    when_needed: bool = False


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `steps` are in an order in which they can run."""

    name: str
    description: str
    variables: Mapping[str, Any]
    steps: tuple[Step, ...]

    def descendants(self, name: str) -> set[str]:
        """The step called `name` and every step that depends on it; raises ConfigError when there is none."""
        reached = {self.named(name)}
        for step in self.steps:
            if reached & set(step.needs):
                reached.add(step.name)
        return reached

    def up_to(self, name: str) -> Pipeline:
        """The step called `name` and what it needs, without the rest; raises ConfigError when there is none."""
        needed = {self.named(name)}
        for step in reversed(self.steps):
            if step.name in needed:
                needed |= set(step.needs)
        return replace(self, steps=tuple(step for step in self.steps if step.name in needed))

    def named(self, name: str) -> str:
        """`name`, when a step is called that; raises ConfigError that suggests the right one."""
        names = [step.name for step in self.steps]
        if name not in names:
            raise ConfigError(
                f"The pipeline has no stage {name!r}{did_you_mean(name, names)}.",
                hint=f"Its stages are {', '.join(names)}.",
            )
        return name


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
    by_name = shipped(kind)
    if path.stem in by_name and (path.name == path.stem or path.parent.name in ("", kind)):
        return by_name[path.stem]
    if path.exists():
        raise ConfigError(f"{path} is not a file.", hint=f"Give a YAML file, or the name of a {kind[:-1]}.")
    raise InputError(
        f"There is no {kind[:-1]} {name!r}: it is neither a file nor one that ships with cdkit"
        f"{did_you_mean(path.stem, by_name)}.",
        hint="cdkit pipeline list shows what ships with cdkit."
        if kind == "pipelines"
        else f"These ship with cdkit: {', '.join(by_name)}.",
    )


def load(path: Path, overrides: Mapping[str, Any], folder: Path) -> Pipeline:
    """Read and check a pipeline whose run goes to `folder`. Raises ConfigError with every mistake at once.

    overrides: `variable` or `step.key` → value, as given with --set.
    """
    parsed = read_document(path)
    document, mistakes = parsed.value, Mistakes(path, parsed)
    _check_top(document, mistakes)
    variables = resolve_variables(_mapping(document.get("vars")), overrides, mistakes)
    bodies = repeat_stages(_mapping(document.get("stages")), variables, mistakes)
    _override(variables, bodies, overrides, mistakes)
    steps = [
        step
        for name, body in bodies.items()
        if (step := _step(name, body, list(bodies), folder, mistakes)) is not None
    ]
    ordered = _order(_complete(steps), mistakes)
    mistakes.raise_any()
    name = str(document.get("name", path.stem))
    return Pipeline(name, str(document.get("description", "")).strip(), variables, tuple(ordered))


def read_document(path: Path) -> Document:
    """A pipeline's YAML, of which no more is known than that it is a mapping; raises ConfigError."""
    document = read_yaml(path, scalar_keys_beside=CHOICE)
    if not isinstance(document.value, dict):
        raise ConfigError(
            f"{path} is not a pipeline: it must be a mapping with `stages:`.", hint="See cdkit pipeline show."
        )
    return document


def run_folder(path: Path) -> Path:
    """Where a pipeline's run goes when nothing else is said; raises ConfigError for what is no pipeline."""
    name = read_document(path).value.get("name", path.stem)
    # `load` says what is wrong with a name that is none.
    return Path("runs") / (name if _is_name(name) else path.stem)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _check_top(document: Mapping[str, Any], mistakes: Mistakes) -> None:
    for key in document:
        if key not in _TOP_KEYS:
            mistakes.add(str(key), f"unknown key{did_you_mean(str(key), _TOP_KEYS)}")
    if "name" in document and not _is_name(document["name"]):
        mistakes.add("name", "must be letters, digits, '-' and '_', at most 100")
    if not isinstance(document.get("stages"), dict) or not document["stages"]:
        mistakes.add("stages", "missing, empty or not a mapping of stage names")
    if not isinstance(document.get("vars") or {}, dict):
        mistakes.add("vars", "must be a mapping")


def _mapping(value: Any) -> dict[Any, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _override(
    variables: Mapping[str, Any], bodies: dict[str, Body], overrides: Mapping[str, Any], mistakes: Mistakes
) -> None:
    """Apply `step.key`; variables have been replaced where they were resolved."""
    for key, value in overrides.items():
        step, dot, name = key.partition(".")
        if dot and step in bodies and isinstance(bodies[step].values, dict):
            bodies[step] = replace(bodies[step], values={**bodies[step].values, name: value})
        elif dot:
            mistakes.add(f"--set {key}", f"there is no stage {step!r}{did_you_mean(step, bodies)}")
        elif key not in variables:
            mistakes.add(f"--set {key}", f"there is no such variable{did_you_mean(key, variables)}")


def _step(name: str, body: Body, names: Sequence[str], folder: Path, mistakes: Mistakes) -> Step | None:
    where = f"stages.{name}"
    if not _is_name(name):
        mistakes.add(where, "a stage name must be letters, digits, '-' and '_', at most 100")
        return None
    if not isinstance(body.values, dict) or "run" not in body.values:
        mistakes.add(where, "must be a mapping with `run: STAGE`")
        return None
    if CHOICE in body.values:
        mistakes.add(f"{where}.{CHOICE}", "chooses the value of a setting or a variable, not a whole stage")
        return None
    before = len(mistakes.lines)
    values = interpolate(body.values, body.variables, where, mistakes)
    stage, when_needed = values.pop("run"), values.pop(WHEN_NEEDED, False)
    if not isinstance(stage, str) or stage not in STAGES:
        mistakes.add(f"{where}.run", f"unknown stage {stage!r}{did_you_mean(str(stage), STAGES)}")
        return None
    if not isinstance(when_needed, bool):
        mistakes.add(f"{where}.{WHEN_NEEDED}", "must be true or false")
    config_class = STAGES[stage].config_class()
    if len(mistakes.lines) > before:
        # Its values cannot be checked without the variable, its keys can.
        for key in values.keys() - config_class.model_fields.keys():
            mistakes.add(f"{where}.{key}", f"unknown key{did_you_mean(key, config_class.model_fields)}")
        return None
    linked, needs, whole_run = _link(values, config_class, names, folder)
    for key, _, value in _bare_inputs(values, config_class):
        if value not in names and nearest(value, names):
            mistakes.add(f"{where}.{key}", f"{value!r} is no stage and no path{did_you_mean(value, names)}")
    try:
        config = config_class.model_validate(linked)
    except ValidationError as error:
        for line in describe_mistakes(error, config_class, where=where):
            mistakes.add(*line.split(": ", 1))
        return None
    return Step(name, stage, values, config, tuple(needs), whole_run, when_needed)


def _link(
    values: Mapping[str, Any], config: type[StageConfig], names: Sequence[str], folder: Path
) -> tuple[dict[str, Any], list[str], bool]:
    """Replace step names in input fields by the folders those steps write.

    Returns the values, the steps named, and whether it is about the whole run: a stage such as report takes the run's
    own folder when it is given none.
    """
    linked: dict[str, Any] = dict(values)
    needs: list[str] = []
    whole_run = False

    def replaced(value: Any) -> Any:
        if isinstance(value, str) and value in names:
            needs.append(value)
            return str(folder / value)
        if isinstance(value, list):
            return [replaced(item) for item in value]
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return value

    for key, extra in field_settings(config).items():
        if extra.input == "run" and key not in linked:
            linked[key] = str(folder)
            whole_run = True
        elif extra.input is not None and key in linked:
            linked[key] = replaced(linked[key])
    return linked, list(dict.fromkeys(needs)), whole_run


def _bare_inputs(values: Mapping[str, Any], config: type[StageConfig]) -> Iterator[tuple[str, InputKind, str]]:
    """Inputs that look like the name of a step and are no path that is there: key, kind, value."""
    for key, extra in field_settings(config).items():
        if extra.input is None:
            continue
        for value in _texts(values.get(key)):
            if _is_name(value) and value != EMBEDDED and not Path(value).exists():
                yield key, extra.input, value


def _texts(value: Any) -> list[str]:
    """Every text in a value."""
    if isinstance(value, list | dict):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def check_inputs(pipeline: Pipeline) -> None:
    """Raise ConfigError for inputs that are neither a step nor a path that is there, though they look like a name."""
    names = [step.name for step in pipeline.steps]
    problems = [
        f"stages.{step.name}.{key}: {value!r} is no stage and no path{did_you_mean(value, names)}"
        for step in pipeline.steps
        for key, kind, value in _bare_inputs(step.config.model_dump(), type(step.config))
        if kind not in ("model", "encoder")  # on the hub, models may have such a name
    ]
    if problems:
        raise ConfigError("Inputs that are not there:", problems=problems, hint="Name a stage, or give a path.")


def _complete(steps: Sequence[Step]) -> list[Step]:
    """Leave out steps that are there only when needed and are not; give those about the whole run their needs."""
    kept = list(steps)
    while True:
        needed = {need for step in kept for need in step.needs if need != step.name}
        rest = [step for step in kept if not step.when_needed or step.name in needed]
        if len(rest) == len(kept):
            break
        kept = rest
    return [
        replace(step, needs=tuple(other.name for other in kept if other.stage != step.stage))
        if step.whole_run
        else step
        for step in kept
    ]


def _order(steps: Sequence[Step], mistakes: Mistakes) -> list[Step]:
    """Steps in file order, moved behind what they need; a cycle is a mistake."""
    by_name = {step.name: step for step in steps}
    needs = {step.name: [need for need in step.needs if need in by_name] for step in steps}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        # Every name in it is needed by the one before.
        cycle = error.args[1][::-1]
        mistakes.add(f"stages.{cycle[0]}", f"needs itself: {' → '.join(cycle)}")
        return []
    ordered: dict[str, Step] = {}
    for step in steps:
        waiting = [step.name]
        while waiting:
            missing = next((need for need in needs[waiting[-1]] if need not in ordered), None)
            if missing is not None:
                waiting.append(missing)
            else:
                name = waiting.pop()
                ordered[name] = by_name[name]
    return list(ordered.values())
