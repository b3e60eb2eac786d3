"""Cells of a source table in SQL: what a number, a rating or a text says, in whatever type a pool writes it."""

from __future__ import annotations

from collections.abc import Sequence

from cdkit.captions.pools import SAFETY
from cdkit.captions.source_reading import SourceTable

NSFW_RATINGS = ("UNLIKELY", "UNSURE", "NSFW")
# Other pools' words for the three ratings.
_WORDS = {
    "UNLIKELY": ("UNLIKELY", "VERY_UNLIKELY", "VERY UNLIKELY", "SFW", "SAFE", "FALSE", "F", "NO", "N"),
    "UNSURE": ("UNSURE", "POSSIBLE", "POSSIBLY"),
    "NSFW": ("NSFW", "UNSAFE", "LIKELY", "VERY_LIKELY", "VERY LIKELY", "EXPLICIT", "TRUE", "T", "YES", "Y"),
}
# What tables hold where nothing is known, in upper case: LAION's own, pandas', SQL's.
_UNKNOWN = ("", "?", "NAN", "NONE", "NULL", "N/A", "NA", "<NA>", "UNKNOWN", "UNRATED")
_NUMBERS = ("int", "uint", "float", "double", "halffloat", "decimal")
BLANKS = "e' \\t\\n\\r'"


class Cell:
    """One column of a table as SQL."""

    def __init__(self, table: SourceTable, position: int) -> None:
        kind = table.types[position] if table.types else "string"
        self.column = f"c{position}"
        self.is_number = kind.startswith(_NUMBERS)
        self.is_truth = kind == "bool"

    @property
    def text(self) -> str:
        return f"{self.column}::VARCHAR"

    @property
    def number(self) -> str:
        """As DOUBLE; null for what is no finite number.

        isfinite is not decoration: of a column that holds NaN, comparisons are decided by the file's statistics, which
        leave NaN out.
        """
        if self.is_truth:
            return f"{self.column}::INTEGER::DOUBLE"
        value = f"{self.column}::DOUBLE" if self.is_number else f"TRY_CAST(trim({self.text}, {BLANKS}) AS DOUBLE)"
        return f"CASE WHEN isfinite({value}) THEN {value} END"

    @property
    def rating(self) -> str:
        """One of NSFW_RATINGS, from a word or a truth value; null for anything else."""
        if self.is_number:
            return "NULL::VARCHAR"
        if self.is_truth:
            return f"CASE WHEN {self.column} THEN 'NSFW' WHEN NOT {self.column} THEN 'UNLIKELY' END"
        word = f"upper(trim({self.text}, {BLANKS}))"
        cases = " ".join(f"WHEN {word} IN {words} THEN '{rating}'" for rating, words in _WORDS.items())
        # The cheap test first: of a hundred million rows nearly all are spelt so.
        return f"CASE WHEN {self.text} IN {NSFW_RATINGS} THEN {self.text} {cases} END"

    @property
    def probability(self) -> str:
        """A number from 0 to 1 in a column of ratings, where a truth value is a word."""
        if self.is_truth:
            return "NULL::DOUBLE"
        value = f"CASE WHEN {self.number} BETWEEN 0 AND 1 THEN {self.number} END"
        return value if self.is_number else f"CASE WHEN {self.text} IN {NSFW_RATINGS} THEN NULL ELSE {value} END"

    @property
    def is_given(self) -> str:
        """Whether the cell says anything at all."""
        if self.is_truth:
            return f"({self.column} IS NOT NULL)"
        if self.is_number:
            return f"({self.column} IS NOT NULL AND NOT isnan({self.column}::DOUBLE))"
        return f"(upper(trim(coalesce({self.text}, ''), {BLANKS})) NOT IN {_UNKNOWN})"


def cells(table: SourceTable, name: str) -> list[Cell]:
    """The columns that say something of a field; several only where all of them count."""
    return [Cell(table, position) for position in table.layout.columns.get(name, ())]


def rating_cells(table: SourceTable) -> list[Cell]:
    """Every column that says how safe an image is."""
    return [cell for name in SAFETY[:2] for cell in cells(table, name)]


def any_of(conditions: Sequence[str]) -> str:
    """Whether one of several conditions holds."""
    return f"({' OR '.join(conditions)})" if conditions else "false"


def worst_rating(found: Sequence[Cell]) -> str:
    """The worst of several ratings; null when none is one."""
    if not found:
        return "NULL::VARCHAR"
    if len(found) == 1:
        return found[0].rating
    ratings = f"({', '.join(cell.rating for cell in found)})"
    cases = " ".join(f"WHEN coalesce('{rating}' IN {ratings}, false) THEN '{rating}'" for rating in NSFW_RATINGS[::-1])
    return f"CASE {cases} END"


def greatest(values: Sequence[str]) -> str:
    """The greatest of several numbers; null when none is known."""
    if not values:
        return "NULL::DOUBLE"
    return values[0] if len(values) == 1 else f"greatest({', '.join(values)})"
