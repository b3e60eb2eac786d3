"""What is answered before a pipeline is written, the defaults for what is not, and what has none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdkit.core.errors import ConfigError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.text import is_text
from cdkit.drafting.bases import BaseModel
from cdkit.drafting.captions import NONE, CaptionSource
from cdkit.drafting.photos import PhotoSurvey

Shows = Literal["thing", "face", "style"]
SHOWS: dict[Shows, str] = {
    "thing": "one thing, animal or place",
    "face": "one person's face",
    "style": "different things, in one style",
}
Keep = Literal["distil", "none"]
LONGEST_WORD = 60
# What the stages of all concepts in one picture are called.
TOGETHER = "together"
# What prompts and templates would read as something else than a word.
_NO_WORD = re.compile(r"[<>{}$\\\"\x00-\x1f]")


@dataclass(frozen=True)
class ConceptAnswer:
    """One concept: the class word, its photos, and what they show, as whoever has seen them says."""

    word: str
    photos: PhotoSurvey
    shows: Shows = "thing"


@dataclass(frozen=True)
class Answers:
    """All of it. fit: the size of the graphics card, None for none; keep: what holds the class word without pictures;
    out: the file to write."""

    concepts: tuple[ConceptAnswer, ...]
    base: BaseModel
    captions: CaptionSource
    keep: Keep
    fit: str | None
    out: Path


def check_word(word: str) -> str:
    """A class word as prompts have it; raises ConfigError for one that they cannot hold."""
    plain = " ".join(word.split())
    if not plain or len(plain) > LONGEST_WORD or _NO_WORD.search(plain) or not is_text(plain):
        raise ConfigError(
            f"{word!r} is no class word.",
            hint=f"Give what it is in a word or two, such as dog: {EMBEDDED} knows star.",
        )
    return plain


def check_source(source: str, what: str) -> str:
    """A path as a pipeline can name it, without `~`; raises ConfigError for one that YAML or `${…}` would change."""
    path = str(Path(source).expanduser()) if source.startswith("~") else source
    if not is_text(path) or "${" in path:
        raise ConfigError(
            f"{what} {path!a} cannot stand in a pipeline.", hint="Give a link to it that has a plain name."
        )
    return path


def default_base(photos: Sequence[str], at_hand: Sequence[BaseModel]) -> str:
    """The base model to take when none is named: embedded for its own concepts, else the first real one at hand;
    empty where there is none."""
    if photos and all(source.startswith(f"{EMBEDDED}:") for source in photos):
        return EMBEDDED
    return next((base.spec for base in at_hand if base.spec != EMBEDDED), "")


def default_captions(base: str, indexes: Sequence[str]) -> str:
    """The captions to take when none are named: embedded beside the embedded model, else a built index, else none."""
    return EMBEDDED if base == EMBEDDED else next(iter(indexes), NONE)


def names_of(words: Sequence[str]) -> list[str]:
    """A name for each word that a stage can have, no two the same: `dog`, `dog-2`, `muller` for Müller."""
    names: list[str] = []
    taken = {TOGETHER}
    for word in words:
        plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40] or "concept"
        number = 2
        unique = name
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        names.append(unique)
        taken.add(unique)
    return names


def with_article(word: str) -> str:
    """`a dog`, `an apple`: by the first letter, as good as any rule without a dictionary."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"
