"""The SQL that turns a source table into rows: cells of any type, the reason to reject, the caption's digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdkit.captions.lines import TOO_LONG, UNDECODABLE
from cdkit.captions.pools import SAFETY
from cdkit.captions.reading import SourceTable
from cdkit.captions.relation import FAULT, FAULT_TEXT, quote, relation_sql
from cdkit.core.text import CURLED, STRAIGHT, simple_pattern

if TYPE_CHECKING:
    from cdkit.captions.config import ImportConfig


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


def worst_rating(columns: Sequence[Cell]) -> str:
    """The worst of several ratings; null when none is one."""
    if not columns:
        return "NULL::VARCHAR"
    if len(columns) == 1:
        return columns[0].rating
    ratings = f"({', '.join(cell.rating for cell in columns)})"
    cases = " ".join(f"WHEN coalesce('{rating}' IN {ratings}, false) THEN '{rating}'" for rating in NSFW_RATINGS[::-1])
    return f"CASE {cases} END"


def greatest(values: Sequence[str]) -> str:
    """The greatest of several numbers; null when none is known."""
    if not values:
        return "NULL::DOUBLE"
    return values[0] if len(values) == 1 else f"greatest({', '.join(values)})"


# ASCII that is lower case away from clean, if no control character is in it: `digests_of` sees to those. A regular
# expression for all of it costs three times as much. CASE, because DuckDB computes both sides of AND and OR.
PLAIN = """coalesce(strlen(caption) = length(caption) AND caption >= '!' AND NOT ends_with(caption, ' ')
    AND NOT contains(caption, '  ')
    AND CASE WHEN contains(caption, '&') THEN NOT regexp_matches(caption, '&[^ &]') ELSE true END, false)"""
MAX_CHARACTERS = 4000
MAX_SIDE = 65_535
MAX_STATED = 500
VALUE_CHARACTERS = 200
# Addresses that a pool may have: a table from elsewhere must not name files of this machine.
_OF_WEB, _OF_FILES = "https?://[^/?#\\s]", "file:///"
# Values that may be impossible, one bit each in the `impossible` column.
CHECKED = ("width", "height", "similarity", "punsafe", "pwatermark", "nsfw", "md5")
_BOUNDS = {"width": (1, MAX_SIDE), "height": (1, MAX_SIDE), "similarity": (-1, 1)}
# An error that makes the file be read row by row.
_NESTED = "a caption that may be a list"


def rated_sql(table: SourceTable) -> str | None:
    """A query that yields a row when at least one rating of the file is given; None when it has no ratings."""
    rated = [cell.is_given for cell in rating_cells(table)]
    return f"SELECT 1 FROM {relation_sql(table)} WHERE {any_of(rated)} LIMIT 1" if rated else None


def rows_sql(table: SourceTable, config: ImportConfig, *, rated: bool) -> str:
    """The query over one source table; its columns:

    row, caption (as written; null for rows too broken to clean), digest (sha256 of the cleaned caption in hex, null
    where Python has to clean), reason and value (null: keep), url, width, height, nsfw, pool_similarity, punsafe,
    pwatermark, md5, licence, attribution, impossible (bits in the order of CHECKED).
    """
    values = {"caption": _caption(table), "url": _text(table, "url"), **_values(table)}
    values["licence"] = _stated(table, "licence", default=config.pool_licence)
    values["attribution"] = _stated(table, "attribution")
    named = ", ".join(f"{value} AS {name}" for name, value in values.items())
    impossible = " + ".join(
        f"CASE WHEN {condition} THEN {1 << bit} ELSE 0 END" for bit, condition in enumerate(_impossible(table))
    )
    return f"""
    WITH normal AS (SELECT *, {named} FROM {relation_sql(table)}),
    judged AS (SELECT *, ({impossible})::UTINYINT AS impossible, {_reason(table, config, rated=rated)} AS reason
        FROM normal),
    readable AS (SELECT *, {FAULT} IS NULL AND coalesce(reason NOT IN ('empty', '{TOO_LONG}', '{UNDECODABLE}'), true)
        AS readable FROM judged),
    cleaned AS (SELECT *, CASE WHEN NOT readable THEN NULL
        WHEN {PLAIN} THEN lower(caption)
        WHEN regexp_full_match(caption, {quote(simple_pattern())})
        THEN lower(trim(regexp_replace(translate(caption, '{CURLED}', {quote(STRAIGHT)}), '[ \\t\\n\\r]+', ' ', 'g')))
        END AS cleaned FROM readable)
    SELECT row, CASE WHEN readable THEN caption END AS caption, sha256(cleaned) AS digest, reason,
        CASE WHEN reason IS NOT NULL THEN left(coalesce({_shown()}, ''), {VALUE_CHARACTERS}) END AS value,
        CASE WHEN reason IS NULL THEN url END AS url, width::INTEGER AS width, height::INTEGER AS height, nsfw,
        similarity::FLOAT AS pool_similarity, punsafe::FLOAT AS punsafe, pwatermark::FLOAT AS pwatermark, md5,
        licence, attribution, impossible
    FROM cleaned"""


def impossible_counts(bits: Sequence[int]) -> dict[str, int]:
    """Rows per impossible value, from how often each value 0–127 of the `impossible` column occurs."""
    counts = {
        name: sum(number for value, number in enumerate(bits) if value >> bit & 1) for bit, name in enumerate(CHECKED)
    }
    return {name: number for name, number in counts.items() if number}


def _reason(table: SourceTable, config: ImportConfig, *, rated: bool) -> str:
    """The first rule that a row breaks; null when it breaks none."""
    level = NSFW_RATINGS.index(config.nsfw_limit.upper())
    forbidden = ", ".join(f"'{rating}'" for rating in NSFW_RATINGS[level + 1 :])
    rules = [
        (f"'{UNDECODABLE}'", "contains(caption, chr(0)) OR contains(url, chr(0))"),
        # A caption that begins with a letter or mark need not be looked through: nearly every one.
        (
            "'empty'",
            "CASE WHEN caption < '!' THEN NOT regexp_matches(caption, '[^ \\t\\n\\r]') ELSE caption IS NULL END",
        ),
        (f"'{TOO_LONG}'", f"strlen(caption) > {MAX_CHARACTERS} AND length(caption) > {MAX_CHARACTERS}"),
        ("'bad_url'", f"NOT regexp_matches(url, '^(?i){_OF_FILES if table.collection else _OF_WEB}')"),
    ]
    if table.repaired:
        rules.insert(0, (FAULT, f"{FAULT} IS NOT NULL"))
    if rated and not config.keep_unrated:
        rules.append(("'unrated'", _is_unrated(table)))
    if forbidden:
        rules.append(("'nsfw'", f"nsfw IN ({forbidden})"))
    rules.append(("'punsafe'", f"punsafe > {config.max_punsafe!r}"))
    if config.min_side is not None:
        rules.append(("'too_small'", f"least(width, height) < {config.min_side}"))
    if config.max_aspect_ratio is not None:
        rules.append(("'aspect'", f"greatest(width, height) > {config.max_aspect_ratio!r} * least(width, height)"))
    return "CASE " + " ".join(f"WHEN {condition} THEN {reason}" for reason, condition in rules) + " END"


def _is_unrated(table: SourceTable) -> str:
    """Nothing says how safe the row is, or something that is not understood does."""
    unclear = [f"({_is_unclear(cell.is_given, cell.rating, cell.probability)})" for cell in rating_cells(table)]
    return f"(nsfw IS NULL AND punsafe IS NULL) OR {any_of(unclear)}"


def _is_unclear(is_given: str, *readings: str) -> str:
    # What is read needs no look at whether it is there, which costs more.
    return f"CASE WHEN {any_of([f'({reading}) IS NOT NULL' for reading in readings])} THEN false ELSE {is_given} END"


def _shown() -> str:
    """What of a rejected row shows why."""
    return f"""CASE WHEN {FAULT} IS NOT NULL THEN {FAULT_TEXT} WHEN reason = 'bad_url' THEN url
        WHEN reason = 'nsfw' THEN nsfw WHEN reason = 'punsafe' THEN punsafe::VARCHAR
        WHEN reason IN ('too_small', 'aspect') THEN concat_ws('x', width::INTEGER, height::INTEGER)
        ELSE replace(caption, chr(0), '') END"""


def _caption(table: SourceTable) -> str:
    """The caption as written; an error where a line of JSON may hold a list or an object for it."""
    text = _text(table, "caption", trimmed=False)
    if table.kind != "jsonl":
        return text
    column = cells(table, "caption")[0].column
    nested = f"CASE WHEN {column}[1] IN ('[', '{{') THEN json_valid({column}) ELSE false END"
    return f"CASE WHEN {nested} THEN error('{_NESTED}') ELSE {text} END"


def _text(table: SourceTable, name: str, *, trimmed: bool = True) -> str:
    columns = cells(table, name)
    text = _first_known([cell.text for cell in columns], "VARCHAR")
    if not trimmed or not columns:
        return text
    # The cheap test comes first: trimming a set of characters costs DuckDB ten times as much.
    blank = any_of([f"contains({text}, chr({ord(char)}))" for char in " \t\n\r"])
    return f"CASE WHEN {blank} THEN nullif(trim({text}, {BLANKS}), '') ELSE nullif({text}, '') END"


def _stated(table: SourceTable, name: str, *, default: str | None = None) -> str:
    """What a row says in words of a thing, cut short where it is long; `default` where it says nothing."""
    columns = cells(table, name)
    stated = _first_known([_stated_by(cell) for cell in columns], "VARCHAR")
    return stated if default is None else f"coalesce({stated}, {quote(default)})"


def _stated_by(cell: Cell) -> str:
    """What one cell states; null for what says nothing. The cheap tests first: nearly all of a pool state the same."""
    text = cell.text
    careful = f"CASE WHEN {cell.is_given} THEN trim(left(replace({text}, chr(0), ' '), {MAX_STATED}), {BLANKS}) END"
    # Every word for what is unknown is shorter than this.
    plain = f"""strlen({text}) BETWEEN 9 AND {MAX_STATED} AND {text} >= '!' AND NOT ends_with({text}, ' ')
        AND NOT contains({text}, chr(0))"""
    return f"CASE WHEN {text} IN ('', '?') THEN NULL WHEN {plain} THEN {text} ELSE {careful} END"


def _values(table: SourceTable) -> dict[str, str]:
    """The normalised value of every field of CHECKED: null when unknown or impossible."""
    values = {name: _bounded(_number(table, name), name) for name in _BOUNDS}
    ratings = rating_cells(table)
    values["punsafe"] = greatest([cell.probability for cell in ratings])
    values["pwatermark"] = greatest([_bounded(cell.number, "pwatermark") for cell in cells(table, "pwatermark")])
    values["nsfw"] = worst_rating(ratings)
    md5 = _text(table, "md5")
    values["md5"] = f"CASE WHEN regexp_full_match({md5}, '[0-9a-fA-F]{{32}}') THEN lower({md5}) END"
    return values


def _number(table: SourceTable, name: str) -> str:
    return _first_known([cell.number for cell in cells(table, name)], "DOUBLE")


def _first_known(values: Sequence[str], kind: str) -> str:
    """The first of several values that is not null; a null of the SQL type `kind` when there are none."""
    if not values:
        return f"NULL::{kind}"
    return values[0] if len(values) == 1 else f"coalesce({', '.join(values)})"


def _bounded(value: str, name: str) -> str:
    low, high = _BOUNDS.get(name, (0, 1))
    # A side may be written as 640.0.
    value = f"round({value})" if name in ("width", "height") else value
    return f"CASE WHEN {value} BETWEEN {low} AND {high} THEN {value} END"


def _impossible(table: SourceTable) -> list[str]:
    """For every field of CHECKED, whether the table says something that cannot be."""
    conditions = []
    for name in CHECKED:
        columns = cells(table, name)
        if name in ("nsfw", "punsafe"):
            unclear = [_is_unclear(cell.is_given, cell.rating, cell.probability) for cell in columns]
            conditions.append(any_of(unclear))
        else:
            conditions.append(_is_unclear(any_of([cell.is_given for cell in columns]), name))
    return conditions
