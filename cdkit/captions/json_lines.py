"""JSON lines: what the keys of a file mean, wherever they first appear, and its rows line by line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdkit.captions.lines import (
    AMBIGUOUS,
    MAX_LINE,
    NOT_JSON,
    NOT_OBJECT,
    NOT_TEXT,
    TOO_LONG,
    SourceRow,
    broken,
    row_of,
)
from cdkit.captions.pools import KNOWN_NAMES, SAFETY, STATED, Layout, choice_hint, find_layout
from cdkit.core.columns import ColumnNames, folded
from cdkit.core.errors import InputError

if TYPE_CHECKING:
    from cdkit.captions.config import ImportConfig

# Objects looked at before the layout is decided on; all of them where none of these has a caption.
SAMPLE_ROWS = 1000
_NEEDED = frozenset(name for names in KNOWN_NAMES.values() for name in names)


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its keys and values, a key that stands there twice included."""


# What JSON takes for blanks; Python knows more.
_BLANKS = " \t\r\n"
# Whole numbers stay as they are written: Python reads no more than 4,300 digits.
_decoder = json.JSONDecoder(object_pairs_hook=Pairs, parse_int=str)


def parse_line(line: str) -> Pairs | str:
    """The object of one line (an empty one for null, as for DuckDB), or what is wrong with it."""
    if len(line) > MAX_LINE:
        return TOO_LONG
    try:
        value = _decoder.decode(line.strip(_BLANKS))
    except (ValueError, RecursionError):
        return NOT_JSON
    if value is None:
        return Pairs()
    return value if isinstance(value, Pairs) else NOT_OBJECT


@dataclass
class KeySample:
    """The keys of a file's first objects.

    lines: how many there were that are not blank; objects: how many of them were objects; seen: objects that have a
    key, nested: those in which it holds a list or an object, twice: those in which two keys are the same name.
    """

    lines: int = 0
    objects: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    nested: Counter[str] = field(default_factory=Counter)
    twice: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)

    def add(self, value: Pairs) -> None:
        """Count one object."""
        self.objects += 1
        # Not sets: the order of the keys decides the order of the columns.
        self.seen.update(dict.fromkeys(key for key, _ in value).keys())
        self.nested.update(dict.fromkeys(key for key, item in value if isinstance(item, list)).keys())
        names = Counter(folded(key) for key, item in value if item is not None)
        self.names.update(names.keys())
        self.twice.update(name for name, number in names.items() if number > 1)

    def always_twice(self, name: str) -> bool:
        """Whether every object that has a key of this name has several."""
        name = folded(name)
        return 0 < self.names[name] == self.twice[name]


def sampled_keys(lines: Iterable[str], config: ImportConfig) -> KeySample:
    """The keys of the first objects, of more where none of them has a caption."""
    wanted = KNOWN_NAMES["caption"] if config.caption_column is None else (folded(config.caption_column),)
    sample = KeySample()
    for line in lines:
        if not line.strip(_BLANKS):
            continue
        sample.lines += 1
        value = parse_line(line)
        if isinstance(value, Pairs):
            sample.add(value)
        if sample.objects >= SAMPLE_ROWS and any(name in sample.names for name in wanted):
            break
    return sample


def needed_keys(keys: Iterable[str], config: ImportConfig) -> set[str]:
    """Of all keys those that may mean something."""
    chosen = {folded(name) for name in (config.caption_column, config.url_column) if name is not None}
    return {key for key in keys if folded(key) in _NEEDED or folded(key) in chosen}


def every_key(lines: Iterable[str]) -> Iterator[str]:
    """Every key of every object, again and again."""
    for line in lines:
        value = parse_line(line)
        if isinstance(value, Pairs):
            yield from (key for key, _ in value)


def keyed_layout(names: Sequence[str], sample: KeySample, config: ImportConfig) -> Layout:
    """What keys mean; raises InputError where all lines spell a key in several ways at once, or nest what is text."""
    layout = find_layout(
        names,
        pool=config.pool,
        caption_column=config.caption_column,
        url_column=config.url_column,
        spellings=True,
    )
    for meaning, positions in layout.columns.items():
        first = names[positions[0]]
        if meaning not in (*SAFETY, *STATED) and len(positions) > 1 and sample.always_twice(first):
            ColumnNames(tuple(names)).position(first, hint=choice_hint(meaning))
    for meaning in ("caption", "url"):
        spelt = [names[position] for position in layout.columns.get(meaning, ())]
        if spelt and 0 < sum(sample.seen[name] for name in spelt) == sum(sample.nested[name] for name in spelt):
            raise InputError(
                f"key {spelt[0]!r} holds lists or objects, not text",
                hint=f"Choose another with --{meaning}-column, or write one line per {meaning}.",
            )
    return layout


def json_rows(lines: Iterable[str], names: Sequence[str], layout: Layout) -> Iterator[SourceRow]:
    """Every line that is not blank, with the values of the keys that mean something."""
    wanted = layout.positions
    places = {names[position]: place for place, position in enumerate(wanted)}
    # What only one key of a line may say: where two do, nobody knows which is meant.
    alone = [
        {wanted.index(position) for position in positions}
        for meaning, positions in layout.columns.items()
        if meaning not in (*SAFETY, *STATED) and len(positions) > 1
    ]
    captions = {wanted.index(position) for position in layout.columns.get("caption", ())}
    texts = layout.texts
    for line in lines:
        if not line.strip(_BLANKS):
            continue
        value = parse_line(line)
        if isinstance(value, str):
            yield broken(value, line, len(wanted))
            continue
        pairs = [(places[key], item) for key, item in value if key in places and item is not None]
        row = dict(pairs)
        if len(row) < len(pairs) or any(len(group & row.keys()) > 1 for group in alone):
            yield broken(AMBIGUOUS, line, len(wanted))
        elif any(isinstance(row.get(place), list) for place in captions):
            yield broken(NOT_TEXT, line, len(wanted))
        else:
            yield row_of([row.get(place) for place in range(len(wanted))], texts)
