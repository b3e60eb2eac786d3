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
from typing import Any

from cdkit.config import did_you_mean

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
CHOICE, OTHERWISE, EACH = "by", "else", "each"


@dataclass
class Mistakes:
    """Every mistake found in one file, in the order found."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.lines.append(f"{where}: {what}")


@dataclass(frozen=True)
class Body:
    """One stage as it is written, and the variables that count for it."""

    values: Any
    variables: Mapping[str, Any]


def resolve_variables(given: Mapping[Any, Any], overrides: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """The variables' values; each may refer to those above it. overrides: values that replace what the file says."""
    variables: dict[str, Any] = {}
    for key, value in given.items():
        name = str(key)
        variables[name] = interpolate(overrides.get(name, value), variables, f"vars.{name}", mistakes)
    return variables


def interpolate(value: Any, variables: Mapping[str, Any], where: str, mistakes: Mistakes) -> Any:
    """Replace ${name} and ${name.key}, and choices by their case.

    A string that is nothing but one variable keeps that variable's type.
    """
    if isinstance(value, dict):
        filled = {
            str(interpolate(key, variables, where, mistakes)): interpolate(item, variables, where, mistakes)
            for key, item in value.items()
        }
        return _chosen(filled, variables, where, mistakes) if CHOICE in filled else filled
    if isinstance(value, list):
        return [interpolate(item, variables, where, mistakes) for item in value]
    if not isinstance(value, str):
        return value
    found: dict[str, Any] = {}
    for name in _REFERENCE.findall(value):
        try:
            found[name] = _look_up(name, variables)
        except KeyError:
            mistakes.add(where, f"unknown variable ${{{name}}}{did_you_mean(name, variables)}")
            return value
    whole = _REFERENCE.fullmatch(value)
    if whole:
        return found[whole[1]]
    return _REFERENCE.sub(lambda match: str(found[match[1]]), value)


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
    known = {case: value for case, value in cases.items() if case not in (CHOICE, OTHERWISE)}
    if selected in known:
        return known[selected]
    if OTHERWISE not in cases:
        mistakes.add(where, f"{name} is {selected!r}, for which there is no case{did_you_mean(selected, known)}")
    return cases.get(OTHERWISE)


def repeat_stages(stages: Mapping[Any, Any], variables: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Body]:
    """Every stage by its name; one with `each` once for each combination of what its lists hold."""
    found: dict[str, Body] = {}
    for key, body in stages.items():
        where = f"stages.{key}"
        values, scopes = body, [dict(variables)]
        if isinstance(body, dict) and EACH in body:
            values = {name: item for name, item in body.items() if name != EACH}
            scopes = _scopes(body[EACH], variables, f"{where}.{EACH}", mistakes)
        for scope in scopes:
            name = str(interpolate(str(key), scope, where, mistakes))
            if name in found:
                mistakes.add(where, f"there are two stages called {name!r}: name them by every variable of `{EACH}`")
            found[name] = Body(values, scope)
    return found


def _scopes(each: Any, variables: Mapping[str, Any], where: str, mistakes: Mistakes) -> list[dict[str, Any]]:
    before = len(mistakes.lines)
    lists = interpolate(each, variables, where, mistakes)
    if len(mistakes.lines) > before:
        return []
    if not isinstance(lists, dict) or not lists or not all(isinstance(v, list) and v for v in lists.values()):
        mistakes.add(where, "must be a mapping of a name to a list, such as {c: [star, mug]}")
        return []
    return [{**variables, **dict(zip(lists, chosen, strict=True))} for chosen in product(*lists.values())]
