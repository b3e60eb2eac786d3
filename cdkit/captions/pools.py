"""Pools: which column of a table means what, by preset, by detection, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cdkit.config import did_you_mean
from cdkit.errors import ConfigError, InputError

# Column names by meaning, in order of preference; compared without case where no preset says otherwise.
KNOWN_NAMES: dict[str, tuple[str, ...]] = {
    "caption": ("caption", "text", "alt_text", "alttext", "alt", "description", "title", "prompt", "sentence"),
    "url": ("url", "image_url", "img_url", "image_link", "link", "uri"),
    "width": ("original_width", "width", "image_width"),
    "height": ("original_height", "height", "image_height"),
    "nsfw": ("nsfw",),
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score", "clip_similarity"),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "pwatermark": ("pwatermark", "watermark_score"),
    "md5": ("md5",),
}
FIELDS = tuple(KNOWN_NAMES)


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
    """Which column of one file means what. `columns`: field name → position in the file."""

    pool: str
    columns: Mapping[str, int]

    def describe(self, names: Sequence[str]) -> str:
        """`laion2b (caption: TEXT, url: URL)`, for a note to the user."""
        chosen = [f"{name}: {names[self.columns[name]]}" for name in ("caption", "url") if name in self.columns]
        return f"{self.pool} ({', '.join(chosen)})"


def find_layout(
    names: Sequence[str], *, pool: str | None, caption_column: str | None, url_column: str | None
) -> Layout:
    """What the columns `names` of a file mean.

    Raises ConfigError for a column the user named that is not there, InputError when no caption column is known.
    """
    preset = preset_named(pool) if pool else _detect(names)
    columns: dict[str, int] = {}
    for meaning in FIELDS:
        position = _position(names, meaning, preset, required=bool(pool))
        if position is not None:
            columns[meaning] = position
    for meaning, chosen in (("caption", caption_column), ("url", url_column)):
        if chosen is not None:
            columns[meaning] = _named_by_user(names, meaning, chosen)
    if "caption" not in columns:
        raise InputError(
            f"no caption column found; the columns are {', '.join(names)}",
            hint="Name it with --caption-column (and --url-column), or choose --pool.",
        )
    if preset and preset.swapped:
        sides = {"width": columns.get("height"), "height": columns.get("width")}
        columns.update({name: position for name, position in sides.items() if position is not None})
    return Layout(preset.name if preset else "own", columns)


def preset_named(pool: str) -> Preset:
    """The preset called `pool`; raises ConfigError for an unknown one."""
    if pool not in PRESETS:
        raise ConfigError(f"There is no pool called {pool!r}{did_you_mean(pool, PRESETS)}.")
    return PRESETS[pool]


def headerless_preset(rows: Sequence[Sequence[str]]) -> Preset | None:
    """cc3m or cc12m when every row has two values and exactly one, always the same, is a web address."""
    if not rows or any(len(row) != 2 for row in rows):
        return None
    addresses = {tuple(value.strip().lower().startswith(("http://", "https://")) for value in row) for row in rows}
    if addresses == {(False, True)}:
        return PRESETS["cc3m"]
    return PRESETS["cc12m"] if addresses == {(True, False)} else None


def _detect(names: Sequence[str]) -> Preset | None:
    present = set(names)
    return next((preset for preset in PRESETS.values() if preset.signature and preset.signature <= present), None)


def _position(names: Sequence[str], meaning: str, preset: Preset | None, *, required: bool) -> int | None:
    exact = preset.columns.get(meaning) if preset else None
    if exact is not None:
        if exact in names:
            return list(names).index(exact)
        if required and preset and meaning in ("caption", "url"):
            raise InputError(
                f"not the layout of pool {preset.name!r}: no column {exact!r}; the columns are {', '.join(names)}",
                hint="Leave --pool out to have the layout detected, or name --caption-column and --url-column.",
            )
    lowered = [name.strip().lower() for name in names]
    return next((lowered.index(known) for known in KNOWN_NAMES[meaning] if known in lowered), None)


def _named_by_user(names: Sequence[str], meaning: str, chosen: str) -> int:
    if chosen in names:
        return list(names).index(chosen)
    matches = [position for position, name in enumerate(names) if name.lower() == chosen.lower()]
    if len(matches) == 1:
        return matches[0]
    raise ConfigError(
        f"there is no column {chosen!r}{did_you_mean(chosen, names)}",
        hint=f"Give --{meaning}-column one of: {', '.join(names)}.",
    )
