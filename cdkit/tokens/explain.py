"""Explanations of words and tokens: how a tokenizer reads a word, and what a token's embedding is close to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdkit.core.errors import InputError, NetworkError
from cdkit.core.file_kinds import check_weight_folder
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import first_line
from cdkit.core.text import clean_caption, one_line
from cdkit.tokens.count import TokenCounts, read_counts
from cdkit.tokens.modifiers import Neighbour, Pick
from cdkit.tokens.vocabulary import Tower, Vocabulary, letters_of, load_towers

NEIGHBOURS = 5
_NAMED = 4


@dataclass(frozen=True)
class Explanation:
    """One word in one tokenizer: its tokens in a prompt, every entry of that very form, and the tokens it is part of.

    shared: for a word of several tokens, each of them with the other tokens that its form is part of; towers: the text
    towers whose tokenizer this is, "" for the only one.
    """

    word: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    entries: tuple[tuple[str, int], ...]
    counts: tuple[int, ...] | None
    inside: tuple[str, ...]
    rows: int | None = None
    shared: tuple[tuple[str, tuple[str, ...]], ...] = ()
    towers: str = ""

    def sentence(self) -> str:
        """The whole answer in one line."""
        parts = [self._as_typed(), *self._as_piece(), *self._how_often(), self._where(), *self._with_others()]
        where = f"{self.towers}: " if self.towers else ""
        return f"{where}{self.word}: {'; '.join(parts)}."

    def as_json(self) -> dict[str, Any]:
        entries: list[dict[str, Any]] = [{"token": token, "token_id": index} for token, index in self.entries]
        for entry, count in zip(entries, self.counts or (), strict=False):
            entry["count"] = count
        return {
            "word": self.word,
            "tokenizer": self.towers or None,
            "single_token": len(self.ids) == 1,
            "tokens": list(self.tokens),
            "token_ids": list(self.ids),
            "entries": entries,
            "inside": list(self.inside),
            "shared": {token: list(others) for token, others in self.shared},
            "rows": self.rows,
            "sentence": self.sentence(),
        }

    def _as_typed(self) -> str:
        if not self.ids:
            return "no token at all in a prompt"
        if len(self.ids) == 1:
            return f"one token ({self.tokens[0]}, id {self.ids[0]})"
        shown = " + ".join(f"{token} {index}" for token, index in zip(self.tokens, self.ids, strict=True))
        return f"{len(self.ids)} tokens in a prompt ({shown})"

    def _as_piece(self) -> list[str]:
        typed = self.ids[0] if len(self.ids) == 1 else None
        pieces = [f"{token}, id {index}" for token, index in self.entries if index != typed]
        return [f"in the vocabulary also as {' and '.join(pieces)}"] if pieces else []

    def _how_often(self) -> list[str]:
        if self.counts is None:
            return []
        over = f" in {self.rows:,} caption rows" if self.rows is not None else ""
        shown = " and ".join(
            f"{token} occurs {count} time{'' if count == 1 else 's'}"
            for (token, _), count in zip(self.entries, self.counts, strict=True)
        )
        return [shown + over] if shown else []

    def _where(self) -> str:
        return f"part of {_named(self.inside)}" if self.inside else "part of no other token"

    def _with_others(self) -> list[str]:
        """What each token of a word of several brings with it."""
        shown = [f"{letters_of(token)} with {_named(others)}" for token, others in self.shared if others]
        return [f"shares {', '.join(shown)}"] if shown else []


def _named(tokens: Sequence[str]) -> str:
    """`3 other tokens (asks, masks, risks)`"""
    named = ", ".join(letters_of(token) for token in tokens[:_NAMED])
    more = f" and {len(tokens) - _NAMED} more" if len(tokens) > _NAMED else ""
    return f"{len(tokens)} other token{'' if len(tokens) == 1 else 's'} ({named}{more})"


def explain_words(words: Sequence[str], tokenizer: str, counts: Path | None = None) -> list[Explanation]:
    """Explain every word in every tokenizer of a spec, alike ones once; counts: a folder of `cdkit tokens count`.

    Raises InputError for an empty word, an unusable tokenizer, or counts of another one.
    """
    towers = load_towers(tokenizer)
    tables = read_counts(counts, towers) if counts is not None else None
    groups: list[list[int]] = []
    for place, tower in enumerate(towers):
        alike = next((group for group in groups if tower.same_as(towers[group[0]])), None)
        if alike is None:
            groups.append([place])
        else:
            alike.append(place)
    names = [", ".join(towers[place].name for place in group) if len(towers) > 1 else "" for group in groups]
    return [
        replace(explain_word(word, towers[group[0]], tables, place=group[0]), towers=name)
        for word in words
        for group, name in zip(groups, names, strict=True)
    ]


def explain_word(word: str, tower: Tower, counts: TokenCounts | None = None, *, place: int = 0) -> Explanation:
    """Explain one word; a vocabulary entry such as `ktn` or `ucd</w>` may be given by its own spelling.

    place: of the tower among those that were counted.
    """
    vocabulary, spelling = tower.vocabulary, tower.vocabulary.spelling
    exact = word if word in vocabulary.ids and spelling is not None and spelling.is_word(word) else ""
    # Only CLIP's tokenizer makes letters small.
    folded = spelling is None or spelling.lower_case
    typed = letters_of(exact) or (clean_caption(word) if folded else one_line(word))
    if not typed:
        raise InputError(f"There is nothing to explain in {word!r}.", hint="Give a word, such as sks.")
    ids = tower.encode_word(typed)
    letters = vocabulary.spelt(typed)
    forms = dict.fromkeys((letters,) if spelling is None else spelling.forms(letters))
    entries = [(entry, vocabulary.ids[entry]) for entry in forms if entry in vocabulary.ids]
    tokens = tuple(vocabulary.entries[index] for index in ids)
    several = dict(zip(tokens, ids, strict=True)) if len(ids) > 1 else {}
    return Explanation(
        word=word,
        ids=tuple(ids),
        tokens=tokens,
        entries=tuple(entries),
        counts=None if counts is None else tuple(int(counts.counts[place][index]) for _, index in entries),
        inside=_containing(letters, tower),
        rows=counts.sampled if counts is not None else None,
        shared=tuple((token, _containing(vocabulary.letters[index], tower)) for token, index in several.items()),
    )


def _containing(letters: str, tower: Tower) -> tuple[str, ...]:
    """Tokens the form is part of, each form once, the tokenizer's commonest (earliest merges) first."""
    vocabulary = tower.vocabulary
    holders: dict[str, str] = {}
    for index in vocabulary.containing(letters):
        holders.setdefault(vocabulary.letters[index], vocabulary.entries[index])
    return tuple(holders.values())


def embedding_table(base: str) -> np.ndarray:
    """Token embeddings of a base model's first text encoder, float32 [vocabulary size, width].

    Raises InputError for a folder without one, NetworkError when the hub fails.
    """
    if base == EMBEDDED or base.startswith(f"{EMBEDDED}:"):
        from cdkit import embedded

        model = embedded.load_pipeline().text_encoder
    else:
        model = _text_encoder(base)
    weight = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    return np.ascontiguousarray(weight, dtype=np.float32)


def _text_encoder(base: str) -> object:
    from transformers import CLIPTextModel

    folder = Path(base).expanduser()
    part = folder / "text_encoder"
    if folder.exists() and not part.is_dir():
        raise InputError(f"{base} holds no text_encoder/ folder.", hint="Give a diffusers model folder or a hub id.")
    check_weight_folder(part)
    variants = {path.suffixes[-2] for path in part.glob("*model.*.*") if path.suffix in (".safetensors", ".bin")}
    whole = not part.is_dir() or any(part.glob("model.safetensors")) or any(part.glob("pytorch_model.bin"))
    variant = None if whole else next((suffix[1:] for suffix in sorted(variants)), None)
    try:
        return CLIPTextModel.from_pretrained(
            str(folder) if folder.exists() else base, subfolder="text_encoder", variant=variant
        )
    except Exception as error:  # hub, file and shape errors alike
        message = f"The text encoder of {base} cannot be loaded: {first_line(error)}"
        if folder.exists():
            raise InputError(message, hint="The files may be incomplete.") from error
        raise NetworkError(message, hint="Check the name and the network, or give a local model folder.") from error


def add_neighbours(
    picks: Sequence[Pick], vocabulary: Vocabulary, table: np.ndarray, number: int = NEIGHBOURS
) -> tuple[Pick, ...]:
    """The picks with their `number` nearest entries by cosine, nearest first; themselves and special tokens left out.

    table: float32 [rows, width], row per token id. Raises InputError when it has fewer rows than the vocabulary.
    """
    if len(table) < len(vocabulary):
        raise InputError(
            f"The base model has {len(table)} token embeddings, the tokenizer {len(vocabulary)} entries.",
            hint="Give the base model's own --tokenizer.",
        )
    if not picks:
        return ()
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.maximum(lengths, np.finfo(np.float32).tiny)
    ids = [pick.token_id for pick in picks]
    cosines = unit[ids] @ unit[: len(vocabulary)].T
    cosines[:, sorted(vocabulary.specials)] = -np.inf
    cosines[range(len(ids)), ids] = -np.inf
    shown = []
    for pick, row in zip(picks, cosines, strict=True):
        order = np.argsort(-row, kind="stable")[:number].tolist()
        near = tuple(
            Neighbour(vocabulary.entries[index], float(row[index])) for index in order if np.isfinite(row[index])
        )
        shown.append(replace(pick, neighbours=near))
    return tuple(shown)
