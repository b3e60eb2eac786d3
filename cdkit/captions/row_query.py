"""The SQL that turns one source table into rows: normalised values, the reason to reject, and the caption's digest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cdkit.captions.cells import BLANKS, NSFW_RATINGS, any_of, cells, greatest, rating_cells, worst_rating
from cdkit.captions.relation import FAULT, FAULT_TEXT, quote, relation_sql
from cdkit.captions.source_reading import SourceTable
from cdkit.captions.source_rows import TOO_LONG, UNDECODABLE
from cdkit.text import PLAIN_PATTERN, TIDY_PATTERN

if TYPE_CHECKING:
    from cdkit.captions.import_captions import ImportConfig

MAX_CHARACTERS = 4000
MAX_SIDE = 65_535
VALUE_CHARACTERS = 200
# Values that may be impossible, one bit each in the `impossible` column.
CHECKED = ("width", "height", "similarity", "punsafe", "pwatermark", "nsfw", "md5")
_BOUNDS = {"width": (1, MAX_SIDE), "height": (1, MAX_SIDE), "similarity": (-1, 1)}
# An error that makes the file be read row by row.
_NESTED = "a caption that may be a list"


def rated_sql(table: SourceTable) -> str | None:
    """A query that yields a row when at least one rating of the file is given; None when it has no ratings."""
    given = [cell.is_given for cell in rating_cells(table)]
    return f"SELECT 1 FROM {relation_sql(table)} WHERE {any_of(given)} LIMIT 1" if given else None


def rows_sql(table: SourceTable, config: ImportConfig, *, rated: bool) -> str:
    """The query over one source table; its columns:

    row, caption (as written; null for rows too broken to clean), digest (sha256 of the cleaned caption in hex, null
    where Python has to clean), reason and value (null: keep), url, width, height, nsfw, pool_similarity, punsafe,
    pwatermark, md5, impossible (bits in the order of CHECKED).
    """
    values = {"caption": _caption(table), "url": _text(table, "url"), **_values(table)}
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
        WHEN regexp_full_match(caption, {quote(TIDY_PATTERN)}) THEN lower(caption)
        WHEN regexp_full_match(caption, {quote(PLAIN_PATTERN)})
        THEN lower(trim(regexp_replace(caption, '[ \\t\\n\\r]+', ' ', 'g'))) END AS cleaned FROM readable)
    SELECT row, CASE WHEN readable THEN caption END AS caption, sha256(cleaned) AS digest, reason,
        CASE WHEN reason IS NOT NULL THEN left(coalesce({_shown()}, ''), {VALUE_CHARACTERS}) END AS value,
        CASE WHEN reason IS NULL THEN url END AS url, width::INTEGER AS width, height::INTEGER AS height, nsfw,
        similarity::FLOAT AS pool_similarity, punsafe::FLOAT AS punsafe, pwatermark::FLOAT AS pwatermark, md5,
        impossible
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
        ("'empty'", "caption IS NULL OR NOT regexp_matches(caption, '[^ \\t\\n\\r]')"),
        (f"'{TOO_LONG}'", f"strlen(caption) > {MAX_CHARACTERS} AND length(caption) > {MAX_CHARACTERS}"),
        ("'bad_url'", "url IS NOT NULL AND NOT regexp_matches(url, '^(?i)https?://[^/?#\\s]')"),
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


def _is_unclear(given: str, *readings: str) -> str:
    # What is read needs no look at whether it is there, which costs more.
    return f"CASE WHEN {any_of([f'({reading}) IS NOT NULL' for reading in readings])} THEN false ELSE {given} END"


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
    found = [cell.text for cell in cells(table, name)]
    if not found:
        return "NULL::VARCHAR"
    text = found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"
    if not trimmed:
        return text
    # The cheap test comes first: trimming a set of characters costs DuckDB ten times as much.
    return f"CASE WHEN regexp_full_match({text}, '[!-~]+') THEN {text} ELSE nullif(trim({text}, {BLANKS}), '') END"


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
    found = [cell.number for cell in cells(table, name)]
    return "NULL::DOUBLE" if not found else found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"


def _bounded(value: str, name: str) -> str:
    low, high = _BOUNDS.get(name, (0, 1))
    # A side may be written as 640.0.
    value = f"round({value})" if name in ("width", "height") else value
    return f"CASE WHEN {value} BETWEEN {low} AND {high} THEN {value} END"


def _impossible(table: SourceTable) -> list[str]:
    """For every field of CHECKED, whether the table says something that cannot be."""
    conditions = []
    for name in CHECKED:
        found = cells(table, name)
        if name in ("nsfw", "punsafe"):
            unclear = [_is_unclear(cell.is_given, cell.rating, cell.probability) for cell in found]
            conditions.append(any_of(unclear))
        else:
            conditions.append(_is_unclear(any_of([cell.is_given for cell in found]), name))
    return conditions
