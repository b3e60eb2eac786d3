"""What a pipeline's YAML may leave open: `${name}`, values chosen by a variable, and stages written once for many.

vars:
  base: embedded
  photos: {by: base, embedded: "embedded:striped-star", else: photos}     # the case that base names, or else
  concepts: [{word: star}, {word: mug}]
stages:
  "${c.word}-set": {each: {c: "${concepts}"}, run: retrieve, prompts: ["a photo of a ${c.word}"]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError
from cdkit.core.yaml_files import DEEPEST, MOST_MISTAKES, MOST_VALUES, Document

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
CHOICE, OTHERWISE, EACH = "by", "else", "each"
MOST_VARIABLES = MOST_STAGES = 1000
LONGEST_TEXT = 100_000
LONGEST_LINE = 500


@dataclass
class Mistakes:
    """Every mistake found in one file, in the order found, with its line; and how much the file may still stand for.

    left: variables used over and over, and stages written once for many, multiply what a short file says.
    """

    path: Path
    document: Document
    lines: list[str] = field(default_factory=list)
    left: int = MOST_VALUES
    origins: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, what: str) -> None:
        """Note a mistake; raises ConfigError at once when there are very many."""
        stage = ".".join(where.split(".")[:2])
        written = self.origins.get(stage, stage) + where[len(stage) :]
        self.lines.append(self.document.located(f"{_clipped(where)}: {_clipped(what)}", written))
        if len(self.lines) >= MOST_MISTAKES:
            self.raise_any(more="at least ")

    def raise_any(self, *, more: str = "") -> None:
        """Raise ConfigError when there are mistakes."""
        if self.lines:
            message = f"{self.path}: {more}{len(self.lines)} mistake(s):"
            raise ConfigError(message, problems=self.lines, hint="Mend them and run again.")

    def spend(self, value: Any, where: str) -> None:
        """Count what a value stands for; raises ConfigError when the whole file stands for too much."""
        waiting = [(value, 1)]
        while waiting:
            item, depth = waiting.pop()
            self.left -= 1
            if self.left < 0 or depth > DEEPEST:
                self.add(where, f"stands for more than {MOST_VALUES:,} values, or nests too deep, with its variables")
                self.raise_any()
            if isinstance(item, Mapping | list):
                waiting += [(inner, depth + 1) for inner in (item.values() if isinstance(item, Mapping) else item)]


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 1]}…"


@dataclass(frozen=True)
class Body:
    """One stage as it is written, and the variables that count for it."""

    values: Any
    variables: Mapping[str, Any]


def resolve_variables(written: Mapping[Any, Any], overrides: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """The variables' values; each may refer to those above it. overrides: values that replace what the file says."""
    variables: dict[str, Any] = {}
    if len(written) > MOST_VARIABLES:
        mistakes.add("vars", f"more than {MOST_VARIABLES:,} variables")
        return variables
    for key, value in written.items():
        name = str(key)
        variables[name] = interpolate(overrides.get(name, value), variables, f"vars.{name}", mistakes)
    return variables


def interpolate(value: Any, variables: Mapping[str, Any], where: str, mistakes: Mistakes) -> Any:
    """Replace ${name} and ${name.key}, and choices by their case.

    A string that is nothing but one variable keeps that variable's type.
    """
    mistakes.spend(None, where)
    if isinstance(value, dict):
        filled: dict[str, Any] = {}
        for key, item in value.items():
            name = str(interpolate(key, variables, where, mistakes))
            if name in filled:
                mistakes.add(f"{where}.{key}", f"there are two keys {name!r}")
            filled[name] = interpolate(item, variables, f"{where}.{key}", mistakes)
        return _chosen(filled, variables, where, mistakes) if CHOICE in value else filled
    if isinstance(value, list):
        return [interpolate(item, variables, where, mistakes) for item in value]
    if not isinstance(value, str):
        return value
    values: dict[str, Any] = {}
    for name in _REFERENCE.findall(value):
        try:
            values[name] = _look_up(name, variables)
        except KeyError:
            mistakes.add(where, f"unknown variable ${{{name}}}{did_you_mean(name, variables)}")
            return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        mistakes.spend(values[whole[1]], where)
        return values[whole[1]]
    return _filled(value, values, where, mistakes)


def _filled(text: str, values: Mapping[str, Any], where: str, mistakes: Mistakes) -> str:
    """A text with its variables replaced."""
    length = len(text)
    for name in _REFERENCE.findall(text):
        if isinstance(values[name], list | dict):
            mistakes.add(where, f"${{{name}}} is a list or a mapping, which cannot stand inside a text")
            return text
        length += len(str(values[name]))
    if length > LONGEST_TEXT:
        mistakes.add(where, f"with its variables it is a text of more than {LONGEST_TEXT:,} characters")
        return text
    return _REFERENCE.sub(lambda match: str(values[match[1]]), text)


def _look_up(name: str, variables: Mapping[str, Any]) -> Any:
    """The value of `name` or of `name.key.key`; raises KeyError."""
    value: Any = variables
    for part in name.split("."):
        if not isinstance(value, Mapping):
            raise KeyError(name)
        value = value[part]
    return value


def _chosen(cases: Mapping[str, Any], variables: Mapping[str, Any], where: str, mistakes: Mistakes) -> Any:
    """The case that the variable named by `by` selects; `else` is for every other value."""
    name = str(cases[CHOICE])
    try:
        selected = str(_look_up(name, variables))
    except KeyError:
        mistakes.add(f"{where}.{CHOICE}", f"unknown variable {name!r}{did_you_mean(name, variables)}")
        return None
    named = {case: value for case, value in cases.items() if case not in (CHOICE, OTHERWISE)}
    if selected in named:
        return named[selected]
    if OTHERWISE not in cases:
        mistakes.add(where, f"{name} is {selected!r}, for which there is no case{did_you_mean(selected, named)}")
    return cases.get(OTHERWISE)


def repeat_stages(stages: Mapping[Any, Any], variables: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Body]:
    """Every stage by its name; one with `each` once for each combination of what its lists hold."""
    bodies: dict[str, Body] = {}
    for key, body in stages.items():
        where = f"stages.{key}"
        values, scopes = body, [dict(variables)]
        if isinstance(body, dict) and EACH in body:
            values = {name: item for name, item in body.items() if name != EACH}
            scopes = _scopes(body[EACH], variables, f"{where}.{EACH}", mistakes)
        if len(bodies) + len(scopes) > MOST_STAGES:
            mistakes.add(where, f"makes more than {MOST_STAGES:,} stages")
            return bodies
        for scope in scopes:
            name = str(interpolate(str(key), scope, where, mistakes))
            mistakes.origins[f"stages.{name}"] = where
            if name in bodies:
                mistakes.add(where, f"there are two stages called {name!r}: name them by every variable of `{EACH}`")
            bodies[name] = Body(values, scope)
    return bodies


def _scopes(each: Any, variables: Mapping[str, Any], where: str, mistakes: Mistakes) -> list[dict[str, Any]]:
    before = len(mistakes.lines)
    lists = interpolate(each, variables, where, mistakes)
    if len(mistakes.lines) > before:
        return []
    if not isinstance(lists, dict) or not lists or not all(isinstance(v, list) and v for v in lists.values()):
        mistakes.add(where, "must be a mapping of a name to a list, such as {c: [star, mug]}")
        return []
    number = prod(len(values) for values in lists.values())
    if number > MOST_STAGES:
        mistakes.add(where, f"makes {number:,} stages; {MOST_STAGES:,} are the most")
        return []
    return [{**variables, **dict(zip(lists, chosen, strict=True))} for chosen in product(*lists.values())]
