"""The SQL that turns one source table into rows: normalised values, the reason to reject, and the caption's digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdkit.captions.repair import MARK
from cdkit.captions.source_reading import SourceTable, relation_sql
from cdkit.text import PLAIN_PATTERN, TIDY_PATTERN

if TYPE_CHECKING:
    from cdkit.captions.import_captions import ImportConfig

MAX_CHARACTERS = 4000
MAX_SIDE = 65_535
VALUE_CHARACTERS = 200
NSFW_RATINGS = ("UNLIKELY", "UNSURE", "NSFW")
# Values that may be impossible, one bit each in the `impossible` column; a bound pair, or None for text.
CHECKED: dict[str, tuple[float, float] | None] = {
    "width": (1, MAX_SIDE),
    "height": (1, MAX_SIDE),
    "similarity": (-1, 1),
    "punsafe": (0, 1),
    "pwatermark": (0, 1),
    "nsfw": None,
    "md5": None,
}
_BLANKS = "e' \\t\\n\\r'"
_NUMBERS = ("int", "uint", "float", "double", "halffloat", "decimal")


def rated_sql(table: SourceTable) -> str | None:
    """A query that yields a row when at least one rating of the file is not blank; None when it has no ratings."""
    given = [_is_given(table, name) for name in ("nsfw", "punsafe") if name in table.layout.columns]
    return f"SELECT 1 FROM {relation_sql(table)} WHERE {' OR '.join(given)} LIMIT 1" if given else None


def rows_sql(table: SourceTable, config: ImportConfig, *, rated: bool) -> str:
    """The query over one source table; its columns:

    row, caption (as written; null for rows too broken to clean), digest (sha256 of the cleaned caption in hex, null
    where Python has to clean), reason and value (null: keep), url, width, height, nsfw, pool_similarity, punsafe,
    pwatermark, md5, impossible (bits in the order of CHECKED).
    """
    values = ", ".join(f"{_normal(table, name)} AS {name}" for name in ("caption", "url", *CHECKED))
    given = ", ".join(f"{_is_given(table, name)} AS {name}_given" for name in CHECKED)
    marked = _is_marked(table) if table.repaired else "false"
    impossible = " + ".join(
        f"CASE WHEN {name}_given AND {name} IS NULL THEN {1 << bit} ELSE 0 END" for bit, name in enumerate(CHECKED)
    )
    return f"""
    WITH normal AS (SELECT row, {marked} AS marked, {values}, {given} FROM {relation_sql(table)}),
    judged AS (SELECT *, {_reason(config, rated=rated)} AS reason FROM normal),
    cleaned AS (SELECT *, CASE WHEN reason IN ('empty', 'too_long', 'undecodable') THEN NULL
        WHEN regexp_full_match(caption, {_text(TIDY_PATTERN)}) THEN lower(caption)
        WHEN regexp_full_match(caption, {_text(PLAIN_PATTERN)})
        THEN lower(trim(regexp_replace(caption, '[ \\t\\n\\r]+', ' ', 'g'))) END AS cleaned FROM judged)
    SELECT row, CASE WHEN reason IN ('empty', 'too_long', 'undecodable') THEN NULL ELSE caption END AS caption,
        sha256(cleaned) AS digest, reason,
        CASE WHEN reason IS NOT NULL THEN left(coalesce({_value()}, ''), {VALUE_CHARACTERS}) END AS value,
        CASE WHEN reason IS NULL THEN url END AS url, width::INTEGER AS width, height::INTEGER AS height, nsfw,
        similarity::FLOAT AS pool_similarity, punsafe::FLOAT AS punsafe, pwatermark::FLOAT AS pwatermark, md5,
        ({impossible})::UTINYINT AS impossible
    FROM cleaned"""


def impossible_counts(bits: Sequence[int]) -> dict[str, int]:
    """Rows per impossible value, from how often each value 0–127 of the `impossible` column occurs."""
    counts = {
        name: sum(number for value, number in enumerate(bits) if value >> bit & 1) for bit, name in enumerate(CHECKED)
    }
    return {name: number for name, number in counts.items() if number}


def _reason(config: ImportConfig, *, rated: bool) -> str:
    """The first rule that a row breaks; null when it breaks none."""
    level = NSFW_RATINGS.index(config.nsfw_limit.upper())
    forbidden = ", ".join(f"'{rating}'" for rating in NSFW_RATINGS[level + 1 :])
    rules = [
        ("undecodable", "marked"),
        ("empty", "caption IS NULL OR NOT regexp_matches(caption, '[^ \\t\\n\\r]')"),
        ("too_long", f"strlen(caption) > {MAX_CHARACTERS} AND length(caption) > {MAX_CHARACTERS}"),
        ("bad_url", "url IS NOT NULL AND NOT regexp_matches(url, '^(?i)https?://[^/?#\\s]')"),
    ]
    if rated and not config.keep_unrated:
        rules.append(("unrated", "nsfw IS NULL AND punsafe IS NULL"))
    if forbidden:
        rules.append(("nsfw", f"nsfw IN ({forbidden})"))
    rules.append(("punsafe", f"punsafe > {config.max_punsafe!r}"))
    if config.min_side is not None:
        rules.append(("too_small", f"least(width, height) < {config.min_side}"))
    if config.max_aspect_ratio is not None:
        rules.append(("aspect", f"greatest(width, height) > {config.max_aspect_ratio!r} * least(width, height)"))
    return "CASE " + " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in rules) + " END"


def _value() -> str:
    """What of a rejected row shows why."""
    return f"""CASE reason WHEN 'bad_url' THEN url WHEN 'nsfw' THEN nsfw WHEN 'punsafe' THEN punsafe::VARCHAR
        WHEN 'too_small' THEN concat_ws('x', width::INTEGER, height::INTEGER)
        WHEN 'aspect' THEN concat_ws('x', width::INTEGER, height::INTEGER)
        ELSE replace(caption, {_text(MARK)}, '') END"""


def _normal(table: SourceTable, name: str) -> str:
    """The normalised value of one field: null when blank or impossible."""
    if name not in table.layout.columns:
        return "NULL::DOUBLE" if CHECKED.get(name) else "NULL::VARCHAR"
    bounds = CHECKED.get(name)
    if bounds is not None:
        value = _number(table, name)
        # A side may be written as 640.0; what is not a number at all fails the comparison and becomes null.
        value = f"round({value})" if name in ("width", "height") else value
        return f"CASE WHEN {value} BETWEEN {bounds[0]} AND {bounds[1]} THEN {value} END"
    text = _as_text(table, name)
    if name == "caption":
        return text
    # The cheap test comes first: trimming a set of characters costs DuckDB ten times as much.
    trimmed = f"CASE WHEN regexp_full_match({text}, '[!-~]+') THEN {text} ELSE nullif(trim({text}, {_BLANKS}), '') END"
    if name == "nsfw":
        rating = f"upper(trim({text}, {_BLANKS}))"
        return f"CASE WHEN {text} IN {NSFW_RATINGS} THEN {text} WHEN {rating} IN {NSFW_RATINGS} THEN {rating} END"
    if name == "md5":
        return f"CASE WHEN regexp_full_match({trimmed}, '[0-9a-fA-F]{{32}}') THEN lower({trimmed}) END"
    return trimmed


def _is_given(table: SourceTable, name: str) -> str:
    """Whether the file says anything at all; LAION writes ? and the empty string for nothing."""
    if name not in table.layout.columns:
        return "false"
    column = _column(table, name)
    if _is_number(table, name):
        return f"({column} IS NOT NULL)"
    said = f"(coalesce(trim({column}::VARCHAR, {_BLANKS}), '') NOT IN ('', '?'))"
    return f"CASE WHEN {column} IN {NSFW_RATINGS} THEN true ELSE {said} END" if name == "nsfw" else said


def _is_marked(table: SourceTable) -> str:
    columns = [
        f"coalesce(contains(c{position}, {_text(MARK)}), false)" for position in set(table.layout.columns.values())
    ]
    return f"({' OR '.join(sorted(columns))})"


def _number(table: SourceTable, name: str) -> str:
    column = _column(table, name)
    return f"{column}::DOUBLE" if _is_number(table, name) else f"TRY_CAST(trim({column}::VARCHAR) AS DOUBLE)"


def _is_number(table: SourceTable, name: str) -> bool:
    return bool(table.types) and table.types[table.layout.columns[name]].startswith(_NUMBERS)


def _as_text(table: SourceTable, name: str) -> str:
    return f"{_column(table, name)}::VARCHAR"


def _column(table: SourceTable, name: str) -> str:
    return f"c{table.layout.columns[name]}"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
