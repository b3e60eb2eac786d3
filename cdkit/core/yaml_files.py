"""YAML as cdkit reads it: plain data within bounds, and every mistake with its line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cdkit.core.errors import ConfigError, InputError

MOST_BYTES = 1 << 20
MOST_VALUES = 100_000  # with what anchors stand for
DEEPEST = 40
MOST_MISTAKES = 30
# PyYAML's own parser in C where it is there: it gives the same events twenty times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_LARGEST = 2**63


@dataclass(frozen=True)
class Document:
    """What a YAML text says; `lines` are those of its keys, by their dotted path."""

    value: Any
    lines: Mapping[str, int]

    def located(self, mistake: str, where: str = "") -> str:
        """A mistake (`dotted.path: what`) with the line of its path, or of the nearest key above it in the text."""
        where = where or mistake.partition(": ")[0]
        while where and where not in self.lines:
            where = where.rpartition(".")[0]
        return f"{mistake} (line {self.lines[where]})" if where else mistake


def read_yaml(path: Path, *, scalar_keys_beside: str = "") -> Document:
    """Read a YAML file by `parse_yaml`'s rules; raises ConfigError, and InputError for what cannot be read."""
    try:
        return parse_yaml(read_yaml_text(path), scalar_keys_beside=scalar_keys_beside)
    except ConfigError as error:
        if not error.problems:
            raise
        raise ConfigError(f"{path} has mistakes:", problems=error.problems, hint="Mend them and run again.") from error


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file; raises ConfigError for what is no text, or far too long to be one of ours."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file.", hint="Give a YAML file.")
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="Check the path and the permissions.") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{path} has more than {MOST_BYTES >> 20} MiB.", hint="Is it the right file? Give YAML.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path} is not UTF-8 text (line {line}).", hint="Is it the right file? Give YAML."
        ) from error


def parse_yaml(text: str, *, scalar_keys_beside: str = "") -> Document:
    """The data of one YAML document: texts, numbers, truth values, nulls, lists and mappings with texts as keys.

    Refused, with the line: keys given twice or that are no texts, tags, merge keys, dates, numbers that are none or do
    not fit 64 bits, control characters, further documents, and anchors that refer to themselves or stand for too much.
    scalar_keys_beside: a mapping with this key may also have numbers and truth values as keys. Raises ConfigError.
    """
    builder = _Builder(scalar_keys_beside)
    value = None
    control = _CONTROL.search(text)
    try:
        if control is not None:
            raise _Unreadable(f"line {_line_at(text, control.start())}: the control character {control[0]!r}")
        value = builder.document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        builder.mistakes.append(_syntax(error, text.splitlines()))
    except yaml.reader.ReaderError as error:
        builder.mistakes.append(f"line {_line_at(text, error.position)}: {error.reason}")
    except _Unreadable as error:
        builder.mistakes.append(str(error))
    if builder.mistakes:
        raise ConfigError("Not valid YAML:", problems=builder.mistakes, hint="Mend them and run again.")
    return Document(value, builder.lines)


def _syntax(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> str:
    mark: Any = error.problem_mark
    if mark.line >= len(lines) and error.context_mark is not None:
        mark = error.context_mark  # what was never closed, not the end of the file
    what = ", ".join(str(part) for part in (error.context, error.problem) if part)
    at = lines[mark.line][mark.column : mark.column + 1] if mark.line < len(lines) else ""
    if at == "\t" or "tab character" in what:
        what = "a tab, which YAML does not take: indent with spaces"
    elif "Unicode character escape code" in what:
        what = "an escape of half a surrogate pair, which is no character"
    return f"line {mark.line + 1}: {what}"


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


class _Unreadable(Exception):
    """Reading cannot go on."""


@dataclass(frozen=True)
class _Node:
    """A value, how many values it stands for, and how many are nested in one another at most."""

    value: Any
    size: int
    height: int


@dataclass
class _Builder:
    """Makes data of the parser's events, and collects what is wrong with it."""

    scalar_keys_beside: str
    lines: dict[str, int] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    anchors: dict[str, _Node | None] = field(default_factory=dict)
    size: int = 0

    def document(self, events: Iterator[Any]) -> Any:
        value = None
        seen = False
        for event in events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if seen:
                raise _Unreadable(f"line {_line(event)}: a second document starts; one file holds one")
            value, seen = self.node(next(events), events, "", 1).value, True
        return value

    def mistake(self, event: Any, what: str) -> None:
        self.mistakes.append(f"line {_line(event)}: {what}")
        if len(self.mistakes) >= MOST_MISTAKES:
            raise _Unreadable("and more")

    def node(self, event: Any, events: Iterator[Any], where: str, depth: int) -> _Node:
        before = self.size
        if isinstance(event, yaml.AliasEvent):
            node = self.anchors[event.anchor] if event.anchor in self.anchors else self.unknown_anchor(event)
            if node is None:
                self.mistake(event, f"*{event.anchor} stands in what &{event.anchor} names: it would never end")
                return _Node(None, 1, 1)
            self.grow(event, node.size, depth + node.height - 1)
            return node
        self.grow(event, 1, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            self.mistake(event, f"a tag ({event.tag[:60]}), which is not read: write plain data")
        if isinstance(event, yaml.ScalarEvent):
            value, height = self.scalar(event), 1
        elif isinstance(event, yaml.SequenceStartEvent):
            value, height = self.sequence(events, where, depth)
        else:
            value, height = self.mapping(events, where, depth)
        node = _Node(value, self.size - before, height)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def unknown_anchor(self, event: Any) -> _Node:
        self.mistake(event, f"*{event.anchor} is used before there is an &{event.anchor}")
        return _Node(None, 1, 1)

    def grow(self, event: Any, size: int, depth: int) -> None:
        self.size += size
        if self.size > MOST_VALUES:
            raise _Unreadable(f"line {_line(event)}: more than {MOST_VALUES:,} values, with what anchors stand for")
        if depth > DEEPEST:
            raise _Unreadable(f"line {_line(event)}: more than {DEEPEST} lists and mappings in one another")

    def sequence(self, events: Iterator[Any], where: str, depth: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        height = 1
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            node = self.node(event, events, f"{where}.{len(values)}" if where else str(len(values)), depth + 1)
            values.append(node.value)
            height = max(height, node.height + 1)
        return values, height

    def mapping(self, events: Iterator[Any], where: str, depth: int) -> tuple[dict[Any, Any], int]:
        values: dict[Any, Any] = {}
        unusual: list[tuple[Any, Any]] = []
        first: dict[Any, int] = {}
        height = 1
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            mistakes = len(self.mistakes)
            key = self.node(event, events, "", depth + 1).value
            readable = len(self.mistakes) == mistakes
            inner = f"{where}.{key}" if where else str(key)
            self.lines.setdefault(inner, _line(event))
            node = self.node(next(events), events, inner, depth + 1)
            height = max(height, node.height + 1)
            if isinstance(key, list | dict):
                self.mistake(event, "a key is a list or a mapping; it must be a text")
            elif _is_merge(event):
                self.mistake(event, "a merge key (<<), which is not read: write the keys out, or use vars and ${name}")
            elif key in values:
                self.mistake(event, f"the key {_short(key)} is given twice (first in line {first[key]})")
            else:
                values[key], first[key] = node.value, _line(event)
                if readable and not isinstance(key, str):
                    unusual.append((event, key))
        if self.scalar_keys_beside not in values:
            for event, key in unusual:
                self.mistake(event, f"the key {_written(event)} is {_kind(key)}, not a text: put it in quotes")
        return values, height

    def scalar(self, event: Any) -> Any:
        """A scalar by YAML's own rules; what they make of it by surprise is a mistake."""
        text = event.value
        control = _CONTROL.search(text)
        if control is not None:
            self.mistake(event, f"a text with the control character {control[0]!r}")
            return None
        tag = _RESOLVER.resolve(yaml.ScalarNode, text, event.implicit).removeprefix(_TAG)
        if tag == "timestamp":
            self.mistake(event, f"{_written(event)} is a date in YAML: put it in quotes")
        if tag in ("int", "float"):
            return self.number(event, tag)
        if tag == "bool":
            return yaml.SafeLoader.bool_values[text.lower()]
        return None if tag == "null" else text

    def number(self, event: Any, tag: str) -> int | float | None:
        node = yaml.ScalarNode(_TAG + tag, event.value)
        if ":" in event.value:
            self.mistake(event, f"{_written(event)} is a number of base 60 in YAML: put it in quotes")
            return None
        try:
            value = _CONSTRUCTOR.construct_yaml_int(node) if tag == "int" else _CONSTRUCTOR.construct_yaml_float(node)
            usable = abs(value) < _LARGEST if tag == "int" else math.isfinite(value)
        except ValueError:  # thousands of digits
            usable = False
        if not usable:
            self.mistake(event, f"{_written(event)} is not a number that can be used")
            return None
        return value


_RESOLVER = yaml.resolver.Resolver()
_CONSTRUCTOR = yaml.constructor.SafeConstructor()


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _is_merge(event: Any) -> bool:
    return isinstance(event, yaml.ScalarEvent) and event.value == "<<" and bool(event.implicit[0])


def _written(event: Any) -> str:
    return f"*{event.anchor}" if isinstance(event, yaml.AliasEvent) else _short(event.value)[1:-1]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}...{text[0]}"


def _kind(key: Any) -> str:
    if key is None or isinstance(key, bool):
        return {True: "true in YAML", False: "false in YAML", None: "nothing in YAML"}[key]
    return "a number in YAML"
