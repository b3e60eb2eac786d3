"""Pools: which column of a table means what, by preset, by detection, or as the user says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from cdkit.core.columns import ColumnNames, displayed, folded, listed
from cdkit.core.config import did_you_mean
from cdkit.core.errors import ConfigError, InputError

# Column names by meaning, in order of preference.
KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "text", "alt_text", "alttext", "alt", "description", "title", "prompt", "sentence"),
    "url": ("url", "image_url", "img_url", "image_link", "link", "uri"),
    "width": ("original_width", "width", "image_width"),
    "height": ("original_height", "height", "image_height"),
    "nsfw": (
        *("nsfw", "is_nsfw", "nsfw_rating", "nsfw_label", "nsfw_flag", "nsfw_class", "nsfw_tag"),
        *("unsafe", "is_unsafe", "has_nsfw", "image_nsfw", "prompt_nsfw"),
    ),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score", "clip_similarity"),
    "punsafe": (
        *("punsafe", "p_unsafe", "unsafe_prob", "unsafe_probability", "unsafe_score", "pnsfw", "p_nsfw"),
        *("nsfw_prob", "nsfw_probability", "nsfw_score", "nsfw_prediction", "nsfw_confidence"),
        *("nsfw_score_opennsfw2", "nsfw_score_gantman", "opennsfw2", "open_nsfw", "open_nsfw_score"),
    ),
    "pwatermark": (
        *("pwatermark", "p_watermark", "watermark_score", "watermark", "watermark_prob", "watermark_probability"),
        *("has_watermark", "is_watermarked"),
    ),
    "md5": ("md5",),
    "licence": (
        *("licence", "license", "license_url", "licence_url", "license_type", "license_name", "licensename"),
        *("image_license", "usage_rights", "rights", "rights_statement", "copyright_status"),
    ),
    "attribution": (
        *("attribution", "attribution_text", "credit", "credit_line", "creator", "author", "photographer", "artist"),
        *("copyright_holder", "rights_holder", "rightsholder", "owner_name", "ownername", "username"),
    ),
}
FIELDS = tuple(KNOWN_NAMES)
# What keeps images out: every column that says it counts, and of several the worst.
SAFETY = ("nsfw", "punsafe", "pwatermark")
# Said in words, by all columns of that name together: no picture is turned down for how often its licence is stated.
STATED = ("licence", "attribution")
_SAID = frozenset(name for meaning in (*STATED, *SAFETY) for name in KNOWN_NAMES[meaning])
# More than this share of a file's first lines has to look like rows of a pool without a header line.
HEADERLESS_SHARE = 0.5


@dataclass(frozen=True)
class Preset:
    """A known pool layout: the columns that give it away, which of them mean what, and its quirks.

    header: the columns of files that come without a header line; swapped: WIDTH holds heights and HEIGHT widths.
    """

    name: str
    signature: frozenset[str] = frozenset()
    columns: Mapping[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    swapped: bool = False


_LAION = {"caption": "TEXT", "url": "URL", "width": "WIDTH", "height": "HEIGHT"}

# The more telling signatures first: detection takes the first that fits.
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "relaion", frozenset({"url", "caption", "similarity", "punsafe"}), {"caption": "caption", "url": "url"}
        ),
        Preset(
            "coyo700m",
            frozenset({"url", "text", "image_phash", "clip_similarity_vitb32"}),
            {"caption": "text", "url": "url", "similarity": "clip_similarity_vitb32"},
        ),
        Preset(
            "datacomp",
            frozenset({"uid", "url", "text", "clip_b32_similarity_score"}),
            {"caption": "text", "url": "url", "similarity": "clip_b32_similarity_score"},
        ),
        # The museum or archive that published the picture; its address says the licence, and `hash` is of the file.
        Preset(
            "pd12m",
            frozenset({"id", "url", "caption", "mime_type", "hash", "license"}),
            {"caption": "caption", "url": "url", "md5": "hash", "licence": "license", "attribution": "source"},
        ),
        # Links alone; captions, which others have published, are joined to them by url.
        Preset(
            "megalith10m",
            frozenset({"url", "url_highres", "url_source"}),
            {"caption": "caption", "url": "url_highres", "attribution": "url_source"},
        ),
        Preset("img2dataset", frozenset({"url", "caption", "key", "status"}), {"caption": "caption", "url": "url"}),
        Preset("laion2b", frozenset({"URL", "TEXT", "WIDTH", "HEIGHT"}), _LAION),
        # Same columns as laion2b, so only ever chosen by name: files that others repaired must not be swapped again.
        Preset("laion400m", columns=_LAION, swapped=True),
        Preset("cc3m", columns={"caption": "caption", "url": "url"}, header=("caption", "url")),
        Preset("cc12m", columns={"caption": "caption", "url": "url"}, header=("url", "caption")),
    )
}


@dataclass(frozen=True)
class Layout:
    """Which columns of one file mean what. `columns`: field name → positions in the file.

    Several positions only where all of them count: for ratings, and for JSON keys that lines spell differently.
    """

    pool: str
    columns: Mapping[str, tuple[int, ...]]

    @property
    def positions(self) -> list[int]:
        """Every column that means something, in the file's order."""
        return sorted({position for positions in self.columns.values() for position in positions})

    @property
    def texts(self) -> frozenset[int]:
        """The places, among `positions`, of captions and URLs."""
        texts = {position for name in ("caption", "url") for position in self.columns.get(name, ())}
        return frozenset(place for place, position in enumerate(self.positions) if position in texts)

    def describe(self, names: Sequence[str]) -> str:
        """`laion2b (caption: TEXT, url: URL)`, for a note to the user."""
        chosen = {name: self.columns[name][0] for name in ("caption", "url") if name in self.columns}
        shown = [f"{name}: {displayed(names[position])}" for name, position in chosen.items()]
        return f"{self.pool} ({', '.join(shown)})"


def find_layout(
    names: Sequence[str],
    *,
    pool: str | None,
    caption_column: str | None,
    url_column: str | None,
    spellings: bool = False,
) -> Layout:
    """What the columns `names` of a file mean.

    spellings: names that are the same are one column which lines spell differently, not several columns. Raises
    ConfigError for a column the user named that is not there, InputError when no caption column is known, or when
    several columns have the name of one that is needed.
    """
    table = ColumnNames(tuple(names))
    preset = preset_named(pool) if pool else _detected(table)
    columns: dict[str, tuple[int, ...]] = {}
    chosen = {"caption": caption_column, "url": url_column}
    for meaning in FIELDS:
        option = chosen.get(meaning)
        if option is not None:
            columns[meaning] = (_named_by_user(table, meaning, option),)
        elif positions := _positions(table, meaning, preset, required=bool(pool), spellings=spellings):
            columns[meaning] = positions
    if "caption" not in columns:
        raise InputError(
            f"no caption column found; the columns are {table.listed()}",
            hint="Name it with --caption-column (and --url-column), or choose --pool.",
        )
    if preset and preset.swapped:
        sides = {"width": columns.get("height"), "height": columns.get("width")}
        columns.update({name: positions for name, positions in sides.items() if positions is not None})
    return Layout(preset.name if preset else "own", columns)


def rights_and_ratings(row: Mapping[str, object]) -> dict[str, str]:
    """What a row says of whose an image is and how safe, as text, by its columns' names as they are compared."""
    said: dict[str, str] = {}
    for name, value in row.items():
        if folded(name) in _SAID and isinstance(value, str | int | float):
            text = str(value).lower() if isinstance(value, bool) else str(value).strip()
            # What numpy and pandas write for a number that is not there.
            if text and text != "nan":
                said.setdefault(folded(name), text)
    return said


def stated(said: Mapping[str, str], meaning: str) -> str | None:
    """The licence or attribution in what `rights_and_ratings` gave, by the first column of KNOWN_NAMES that has it."""
    return next((said[name] for name in KNOWN_NAMES[meaning] if name in said), None)


def preset_named(pool: str) -> Preset:
    """The preset called `pool`; raises ConfigError for an unknown one."""
    if pool not in PRESETS:
        raise ConfigError(f"There is no pool called {pool!r}{did_you_mean(pool, PRESETS)}.")
    return PRESETS[pool]


def headerless_preset(rows: Sequence[Sequence[str]]) -> Preset | None:
    """cc3m or cc12m when rows have two values and exactly one, always the same, is a web address.

    A few broken lines among them do not count, but the first of two values has to fit: it may be a header.
    """
    kinds = [_address_columns(row) for row in rows]
    kind, number = Counter(kinds).most_common(1)[0] if kinds else (None, 0)
    if not kind or number <= HEADERLESS_SHARE * len(rows) or kinds[0] not in (kind, None):
        return None
    return PRESETS[kind]


def _address_columns(row: Sequence[str]) -> str | None:
    """The pool that has rows of this kind; None for one of other than two values, empty when none has."""
    if len(row) != 2:
        return None
    first, second = (value.strip().lower().startswith(("http://", "https://")) for value in row)
    return "" if first == second else "cc12m" if first else "cc3m"


def _detected(table: ColumnNames) -> Preset | None:
    """The first preset whose signature fits, unless the table has a column that is more of a caption than its own."""
    best = next((name for name in KNOWN_NAMES["caption"] if name in table.folded), None)
    for preset in PRESETS.values():
        exact = preset.signature <= set(table.names)
        fits = {folded(name) for name in preset.signature} <= table.folded
        if preset.signature and (exact or (fits and folded(preset.columns["caption"]) == best)):
            return preset
    return None


def _positions(
    table: ColumnNames, meaning: str, preset: Preset | None, *, required: bool, spellings: bool
) -> tuple[int, ...]:
    exact = preset.columns.get(meaning) if preset else None
    if required and preset and meaning in ("caption", "url") and exact is not None and not table.positions(exact):
        raise InputError(
            f"not the layout of pool {preset.name!r}: no column {exact!r}; the columns are {table.listed()}",
            hint="Leave --pool out to have the layout detected, or name --caption-column and --url-column.",
        )
    if meaning in SAFETY:
        return tuple(sorted({position for name in KNOWN_NAMES[meaning] for position in table.positions(name)}))
    candidates = (exact, *KNOWN_NAMES[meaning]) if exact is not None else KNOWN_NAMES[meaning]
    name = next((candidate for candidate in candidates if table.positions(candidate)), None)
    if name is None or spellings or meaning in STATED:
        return table.positions(name) if name is not None else ()
    position = table.position(name, hint=choice_hint(meaning))
    return () if position is None else (position,)


def choice_hint(meaning: str) -> str:
    """What to do when several columns may mean the same."""
    if meaning in ("caption", "url"):
        return f"Name one of them exactly with --{meaning}-column, or rename the other."
    return "Rename or remove one of them."


def _named_by_user(table: ColumnNames, meaning: str, chosen: str) -> int:
    """The column a user named: the one that is spelt so, else the only one of that name."""
    exact = [position for position, name in enumerate(table.names) if name == chosen]
    matches = exact or list(table.positions(chosen))
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(
            f"{table.shown(matches)} could both be {chosen!r}",
            hint="Rename one of them." if exact else f"Give --{meaning}-column the name exactly as it is written.",
        )
    raise ConfigError(
        f"there is no column {chosen!r}{did_you_mean(chosen, table.names)}",
        hint=f"Give --{meaning}-column one of: {listed(table.names)}.",
    )


# As strict as the import is by default, also where an index was made with --keep-unrated or another limit.
SAFE_RATING, MOST_PUNSAFE = "unlikely", 0.45


def safety(nsfw: object, punsafe: float | None) -> Literal["safe", "unsafe", "unrated"]:
    """What a row's rating says, as a word or a probability; unsafe too when nobody understands it (NaN, other words).

    For whoever shows or passes on what an index holds.
    """
    rating = str(nsfw or "").strip().lower()
    if rating not in ("", SAFE_RATING) or (punsafe is not None and not punsafe <= MOST_PUNSAFE):
        return "unsafe"
    return "safe" if rating or punsafe is not None else "unrated"
