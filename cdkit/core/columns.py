"""Column names: the one rule by which they are compared, wherever a table from outside is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cdkit.core.errors import InputError

NAMES_SHOWN = 20
_SEPARATORS = re.compile(r"[\s\-]+")
# What a terminal must not be sent: names come from files.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@lru_cache(maxsize=1 << 12)
def folded(name: str) -> str:
    """The form in which names are compared: upper case, blanks around and the kind of separator do not count."""
    return _SEPARATORS.sub("_", name.strip().casefold())


@dataclass(frozen=True)
class ColumnNames:
    """The names of a table's columns, in their order; where: the table, for messages."""

    names: tuple[str, ...]
    where: str = ""

    @cached_property
    def _positions(self) -> dict[str, list[int]]:
        positions: dict[str, list[int]] = {}
        for position, name in enumerate(self.names):
            positions.setdefault(folded(name), []).append(position)
        return positions

    @property
    def folded(self) -> frozenset[str]:
        """Every name in the form in which names are compared."""
        return frozenset(self._positions)

    def positions(self, name: str) -> tuple[int, ...]:
        """Every column that has this name."""
        return tuple(self._positions.get(folded(name), ()))

    def position(self, name: str, *, hint: str) -> int | None:
        """The column of this name; None when there is none. Raises InputError that names them when there are several.

        An exact match does not win: that a table has `url` and `URL` says nothing of which one is meant.
        """
        positions = self.positions(name)
        if len({self.names[position] for position in positions}) < len(positions):
            hint = "Rename or remove all but one of them."
        if len(positions) > 1:
            where = f"{self.where}: " if self.where else ""
            raise InputError(
                f"{where}{self.shown(positions)} have the same name, and only one can be meant", hint=hint
            )
        return positions[0] if positions else None

    def shown(self, positions: Sequence[int]) -> str:
        """`the columns 'url' and 'URL'`"""
        names = [repr(displayed(self.names[position])) for position in positions[:NAMES_SHOWN]]
        return f"the columns {', '.join(names[:-1])} and {names[-1]}"

    def listed(self) -> str:
        """All names for a message, cut short where there are many."""
        return listed(self.names)


def listed(names: Sequence[str]) -> str:
    """Names for a message: `a, b, c`, and how many more there are where there are many."""
    more = f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(displayed(name) for name in names[:NAMES_SHOWN]) + more


def displayed(name: str, most: int = 60) -> str:
    """A name from a file as a message may hold it: without control characters, cut short where it is long."""
    text = _CONTROLS.sub("\ufffd", name)
    return text if len(text) <= most else text[: most - 1] + "…"
