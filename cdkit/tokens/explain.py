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
from cdkit.core.text import clean_caption
from cdkit.tokens.count import TokenCounts, read_counts
from cdkit.tokens.modifiers import Neighbour, Pick
from cdkit.tokens.vocabulary import END_OF_WORD, Tower, Vocabulary, load_towers

NEIGHBOURS = 5
_NAMED = 4


@dataclass(frozen=True)
class Explanation:
    """One word: its tokens in a prompt, every entry of that very form, and the tokens it is part of."""

    word: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    entries: tuple[tuple[str, int], ...]
    counts: tuple[int, ...] | None
    inside: tuple[str, ...]
    rows: int | None = None

    def sentence(self) -> str:
        """The whole answer in one line."""
        return f"{self.word}: {'; '.join([self._as_typed(), *self._as_piece(), *self._how_often(), self._where()])}."

    def as_json(self) -> dict[str, Any]:
        entries: list[dict[str, Any]] = [{"token": token, "token_id": index} for token, index in self.entries]
        for entry, count in zip(entries, self.counts or (), strict=False):
            entry["count"] = count
        return {
            "word": self.word,
            "single_token": len(self.ids) == 1,
            "tokens": list(self.tokens),
            "token_ids": list(self.ids),
            "entries": entries,
            "inside": list(self.inside),
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
        if not self.inside:
            return "part of no other token"
        named = ", ".join(token.removesuffix(END_OF_WORD) for token in self.inside[:_NAMED])
        more = f" and {len(self.inside) - _NAMED} more" if len(self.inside) > _NAMED else ""
        return f"part of {len(self.inside)} other token{'' if len(self.inside) == 1 else 's'} ({named}{more})"


def explain_words(words: Sequence[str], tokenizer: str, counts: Path | None = None) -> list[Explanation]:
    """Explain every word with the first text tower of `tokenizer` (a spec); counts: a folder of `cdkit tokens count`.

    Raises InputError for an empty word, an unusable tokenizer, or counts of another one.
    """
    towers = load_towers(tokenizer)
    tables = read_counts(counts, towers) if counts is not None else None
    return [explain_word(word, towers[0], tables) for word in words]


def explain_word(word: str, tower: Tower, counts: TokenCounts | None = None) -> Explanation:
    """Explain one word; a vocabulary entry such as `ktn` or `ucd</w>` may be given by its own spelling."""
    vocabulary = tower.vocabulary
    exact = word if word in vocabulary.ids and word.endswith(END_OF_WORD) else ""
    typed = exact.removesuffix(END_OF_WORD) or clean_caption(word)
    if not typed:
        raise InputError(f"There is nothing to explain in {word!r}.", hint="Give a word, such as sks.")
    ids = tower.encode([typed])[0]
    letters = _letters(typed, tower)
    entries = [(entry, vocabulary.ids[entry]) for entry in (letters, letters + END_OF_WORD) if entry in vocabulary.ids]
    return Explanation(
        word=word,
        ids=tuple(ids),
        tokens=tuple(vocabulary.entries[index] for index in ids),
        entries=tuple(entries),
        counts=None if counts is None else tuple(int(counts.counts[0][index]) for _, index in entries),
        inside=_containing(letters, tower),
        rows=counts.sampled if counts is not None else None,
    )


def _letters(text: str, tower: Tower) -> str:
    """The text spelt in the vocabulary's own letters (one per byte for CLIP's kind)."""
    if not tower.vocabulary.is_clip_like:
        return text
    from tokenizers import pre_tokenizers

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return "".join(piece for piece, _ in pieces)


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
