"""Initializers of modifier tokens: picks that a `tokens` stage left, the paper's own, or what the user names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cdkit.core.errors import ConfigError, InputError, pip_install
from cdkit.core.storage import read_json
from cdkit.tokens.spelling import END_OF_WORD
from cdkit.tokens.vocabulary import letters_of

PICKS_NAME = "picks.json"
PICKS_FORMAT = 1
# What other vocabularies than CLIP's write before a word: SentencePiece's mark, and a byte's letter for a space.
WORD_STARTS = ("▁", "Ġ")
# The series of words that concepts get by default.
NUMBERED = re.compile(r"<new([1-9][0-9]*)>")


@dataclass(frozen=True)
class Neighbour:
    """A vocabulary entry close to a pick, and the cosine of the two embeddings."""

    token: str
    similarity: float

    def as_json(self) -> dict[str, Any]:
        return {"token": self.token, "similarity": round(self.similarity, 4)}


@dataclass(frozen=True)
class Pick:
    """A token chosen as initializer: its exact vocabulary entry, id and count (None: not counted)."""

    token: str
    token_id: int
    count: int | None = None
    merge_rank: int | None = None
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def surface(self) -> str:
        """The entry without its end-of-word mark."""
        return letters_of(self.token)

    def as_json(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"token": self.token, "token_id": self.token_id, "count": self.count}
        if self.merge_rank is not None:
            shown["merge_rank"] = self.merge_rank
        if self.neighbours:
            shown["neighbours"] = [neighbour.as_json() for neighbour in self.neighbours]
        return shown


# Custom Diffusion's own, by vocabulary entry: two word pieces and one whole word (the CompVis code's ids).
PAPER_INITIALIZERS = (Pick("ktn", 42170), Pick("pll", 47629), Pick("ucd</w>", 43514))


def read_picks(folder: Path | str) -> list[Pick]:
    """The picks of a `tokens` stage's folder, best first; raises InputError when it holds none that can be read."""
    path = Path(folder) / PICKS_NAME
    if not path.exists():
        raise InputError(f"{folder} holds no {PICKS_NAME}.", hint="Make it with cdkit tokens rare --out DIR.")
    values = read_json(path)
    try:
        if int(values["format"]) > PICKS_FORMAT:
            raise InputError(f"{path} was written by a newer cdkit.", hint=pip_install(upgrade=True))
        return [_pick(entry) for entry in values["picks"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged: {error!r}", hint="Make it again with cdkit tokens rare --force."
        ) from error


def _pick(entry: Mapping[str, Any]) -> Pick:
    token, count, rank = entry["token"], entry.get("count"), entry.get("merge_rank")
    if not isinstance(token, str) or not token:
        raise ValueError(f"not a token: {token!r}")
    near = tuple(Neighbour(str(close["token"]), float(close["similarity"])) for close in entry.get("neighbours", ()))
    return Pick(
        token,
        int(entry["token_id"]),
        None if count is None else int(count),
        None if rank is None else int(rank),
        near,
    )


def choose_initializers(picks: Sequence[Pick] | None, words: Sequence[str]) -> list[Pick]:
    """A distinct initializer for each word: of the picks in their order, then the paper's own (ktn, pll, ucd).

    `<new2>` starts from the second pick wherever it is trained, so that concepts that are trained apart, to be merged,
    do not start as the same word; other words take the first that are free. Raises ConfigError when all are too few.
    """
    series: dict[str, Pick] = {}
    for pick in (*(picks or ()), *PAPER_INITIALIZERS):
        series.setdefault(pick.surface, pick)
    if len(series) < len(words):
        raise ConfigError(
            f"{len(words)} concepts need {len(words)} initializers, and there are only {len(series)}.",
            hint="Pick more with cdkit tokens rare --limit, or name them: --token NAME='<new1>'=INITIALIZER.",
        )
    initializers = list(series.values())
    numbers = [int(match[1]) if (match := NUMBERED.fullmatch(word)) else 0 for word in words]
    numbered = len({pick.surface for pick in picks or PAPER_INITIALIZERS})
    places = [number - 1 if 0 < number <= numbered else None for number in numbers]
    free = (index for index in range(len(initializers)) if index not in places)
    return [initializers[next(free) if index is None else index] for index in places]


def resolve_initializer(tokenizer: Any, initializer: Pick | str | int) -> int:
    """The vocabulary id of an initializer in a transformers tokenizer.

    A Pick counts by its exact entry, an int (or digits) is an id, `ktn`, `pll` and `ucd` are the paper's. Other text
    is first the whole word (`cat</w>`, `▁cat`, `Ġcat`), then an exact entry (a word piece such as `sch`), then
    whatever it tokenises to, which must be one id. (Scripts that look the bare text up take the piece `cat` for the
    word, and the end-of-text token for any unknown text.) Raises ConfigError when it is not one token.
    """
    entries: dict[str, int] = tokenizer.get_vocab()
    if isinstance(initializer, Pick):
        if initializer.token not in entries:
            raise ConfigError(
                f"The vocabulary has no entry {initializer.token!r}.",
                hint="It was picked with another tokenizer; pick again with cdkit tokens rare --tokenizer MODEL.",
            )
        return entries[initializer.token]
    if isinstance(initializer, int) or initializer.strip().isdecimal():
        if int(initializer) not in set(entries.values()):
            raise ConfigError(
                f"The vocabulary has no id {int(initializer)} (it has {len(entries)} entries).",
                hint="Pick one with cdkit tokens rare.",
            )
        return int(initializer)
    text = initializer.strip()
    paper = {pick.surface: pick.token for pick in PAPER_INITIALIZERS}
    for entry in (paper.get(text), f"{text}{END_OF_WORD}", *(f"{mark}{text}" for mark in WORD_STARTS), text):
        if text and entry is not None and entry in entries:
            return entries[entry]
    ids = [int(index) for index in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None):
        return ids[0]
    pieces = f"{len(ids)} ({' '.join(tokenizer.convert_ids_to_tokens(ids)[:12])})" if ids else "none"
    raise ConfigError(
        f"The initializer {initializer!r} is not one token of this vocabulary but {pieces}.",
        hint="Pick one with cdkit tokens rare, give a vocabulary id, or see cdkit tokens explain.",
    )
