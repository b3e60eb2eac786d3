"""Captions to token ids without padding: CLIP's own tokenizer, each word tokenised once, and library tokenizers.

Captions come as they were written; every tokenizer cleans them itself, once, as its model's own library does. Cleaning
is not idempotent (`&amp;amp;lt;` unescapes further each time), so whoever calls an encoder must not clean before.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from cdkit.core.text import clean_caption
from cdkit.embedded.tokenizer import byte_letters, vocabulary

CACHED_WORDS = 1 << 20
LONGEST_CACHED_WORD = 64
STANDARD_CLIP_ENTRIES = 49408
# Beyond the rank of every merge.
UNRANKED = 1 << 30

Padding = Callable[[list[str]], Any]
Counting = Callable[[list[str]], Sequence[int]]


@dataclass(frozen=True)
class Tokens:
    """Token ids of n captions, end to end.

    ids: int32 [total], each caption truncated to the context; starts: int64 [n + 1], where each begins;
    full_lengths: int32 [n], tokens with start and end before truncation.
    """

    ids: np.ndarray
    starts: np.ndarray
    full_lengths: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: tokens per caption after truncation."""
        return np.diff(self.starts)

    def padded(self, rows: np.ndarray, pad_id: int, width: int | None = None) -> np.ndarray:
        """int32 [len(rows), width], `pad_id` after each caption's end; width None: the longest of these rows."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        columns = np.arange(lengths.max(initial=0) if width is None else width)
        inside = columns < lengths[:, None]
        first = self.starts[rows][:, None]
        if inside.all():
            return np.asarray(self.ids[first + columns], dtype=np.int32)
        table = np.full(inside.shape, pad_id, dtype=np.int32)
        table[inside] = self.ids[(first + columns)[inside]]
        return table


class Tokenizer(Protocol):
    """Captions as written to Tokens."""

    def __call__(self, captions: Sequence[str]) -> Tokens: ...

    def full_length(self) -> Tokenizer:
        """The same for a tower that sees its padding: no id that the tokenizer gives may be missing."""


def joined(pieces: Sequence[Tokens]) -> Tokens:
    """The captions of several Tokens, one after another."""
    ends = np.cumsum([0, *(len(piece.ids) for piece in pieces)])
    starts = [piece.starts[:-1] + end for piece, end in zip(pieces, ends[:-1], strict=True)]
    lengths = [piece.full_lengths for piece in pieces]
    ids = np.concatenate([np.empty(0, np.int32), *(piece.ids for piece in pieces)])
    return Tokens(ids, np.concatenate([*starts, ends[-1:]]), np.concatenate([np.empty(0, np.int32), *lengths]))


def truncated(rows: Sequence[list[int]], context_length: int, end_id: int) -> Tokens:
    """Tokens of complete id lists, cut as CLIP does: the end token stays last."""
    full = np.fromiter((len(row) for row in rows), dtype=np.int32, count=len(rows))
    cut = [row if len(row) <= context_length else [*row[: context_length - 1], end_id] for row in rows]
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum(np.minimum(full, context_length), out=starts[1:])
    return Tokens(np.fromiter(chain.from_iterable(cut), dtype=np.int32, count=int(starts[-1])), starts, full)


class ClipTokenizer:
    """open_clip's SimpleTokenizer, exactly, but fast: captions repeat words, so each is tokenised once.

    The cleaning (CLIP's, or another that the model's config asks for), the split into words and the byte pairs are
    open_clip's own.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.clean = clean_caption if tokenizer.clean_fn.__name__ == "_clean_lower" else tokenizer.clean_fn
        self.words: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What another process makes the same tokenizer of without open_clip and torch; TypeError when it cannot."""
        library = self.tokenizer
        if self.clean is not clean_caption or not is_standard_clip(library.encoder, vocabulary()[0]):
            raise TypeError("only CLIP's own vocabulary and cleaning travel")
        specials = {library.decoder[number]: number for number in library.all_special_ids}
        return {**vars(self), "tokenizer": (specials, library.pat.pattern, library.pat.flags), "words": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, tokenizer=PlainClip(*state["tokenizer"]))

    def __call__(self, captions: Sequence[str]) -> Tokens:
        rows = [self.row(self.clean(caption)) for caption in captions]
        return truncated(rows, self.context_length, self.tokenizer.eot_token_id)

    def row(self, cleaned: str) -> list[int]:
        """Token ids of one cleaned caption with start and end, not truncated."""
        words = self.words
        ids = [self.tokenizer.sot_token_id]
        for word in self.tokenizer.pat.findall(cleaned):
            ids += words.get(word) or self._tokenise(word)
        ids.append(self.tokenizer.eot_token_id)
        return ids

    def full_length(self) -> ClipTokenizer:
        return self

    def counts(self, captions: Sequence[str]) -> Sequence[int]:
        """Tokens per caption before truncation."""
        counted: list[int] = self(captions).full_lengths.tolist()
        return counted

    def _tokenise(self, word: str) -> list[int]:
        tokenizer = self.tokenizer
        letters = "".join(tokenizer.byte_encoder[byte] for byte in word.encode("utf-8", "replace"))
        ids = [tokenizer.encoder[piece] for piece in tokenizer.bpe(letters).split(" ")]
        if len(word) <= LONGEST_CACHED_WORD:
            if len(self.words) >= CACHED_WORDS:
                self.words.clear()
            self.words[word] = ids
        # Its own cache has no bound; ours stands before it. The special tokens in it must stay.
        if letters not in tokenizer.encoder or tokenizer.encoder[letters] not in tokenizer.all_special_ids:
            tokenizer.cache.pop(letters, None)
        return ids


class PlainClip:
    """What ClipTokenizer uses of open_clip's SimpleTokenizer, made of CLIP's vocabulary file alone."""

    def __init__(self, specials: dict[str, int], pattern: str, flags: int) -> None:
        import regex

        entries, merges = vocabulary()
        ordinary = {entry: number for entry, number in entries.items() if number not in specials.values()}
        self.encoder = {**ordinary, **specials}
        self.decoder = {number: entry for entry, number in self.encoder.items()}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.all_special_ids = list(specials.values())
        self.sot_token_id, self.eot_token_id = self.all_special_ids[:2]
        self.pat = regex.compile(pattern, flags)
        shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self.byte_encoder = dict(zip([*shown, *hidden], byte_letters(), strict=True))
        self.cache: dict[str, str] = {word: word for word in specials}

    def bpe(self, letters: str) -> str:
        """The pieces of a word, a blank between them: the pair of lowest rank is merged until none has one."""
        if letters in self.cache:
            return self.cache[letters]
        pieces = [*letters[:-1], f"{letters[-1]}</w>"]
        while len(pieces) > 1:
            ranks = [self.bpe_ranks.get(pair, UNRANKED) for pair in pairwise(pieces)]
            lowest = min(ranks)
            if lowest == UNRANKED:
                break
            first, second = pieces[ranks.index(lowest) : ranks.index(lowest) + 2]
            merged: list[str] = []
            for piece in pieces:
                if merged and piece == second and merged[-1] == first:
                    merged[-1] = first + second
                else:
                    merged.append(piece)
            pieces = merged
        return " ".join(pieces)


class LibraryTokenizer:
    """Any other tokenizer, through what its library pads to the full context.

    pad: captions to ids [n, context_length]; count: captions to their tokens before truncation. `ends` finds the
    pooled position per row (int [n, context_length] to int [n]) when what follows is padding; None keeps it all.
    """

    def __init__(self, pad: Padding, count: Counting, ends: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self.pad = pad
        self.count = count
        self.ends = ends

    def __call__(self, captions: Sequence[str]) -> Tokens:
        if not captions:
            return truncated([], 1, 0)
        table = np.asarray(self.pad(list(captions)), dtype=np.int32)
        lengths = np.full(len(table), table.shape[1]) if self.ends is None else self.ends(table) + 1
        starts = np.zeros(len(table) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        inside = np.arange(table.shape[1]) < lengths[:, None]
        return Tokens(table[inside], starts, np.asarray(self.count(list(captions)), dtype=np.int32))

    def full_length(self) -> LibraryTokenizer:
        return LibraryTokenizer(self.pad, self.count, None)


def pooled_positions(table: np.ndarray, end_id: int | None) -> np.ndarray:
    """Where CLIP reads the embedding of each row of ids: the first `end_id`, or the highest id when it is None."""
    return np.asarray((table if end_id is None else table == end_id).argmax(axis=1))


def is_standard_clip(vocabulary: dict[str, int], clip: dict[str, int]) -> bool:
    """Whether a vocabulary is CLIP's 49,408 entries; the two special tokens go by other names in transformers."""
    if len(vocabulary) != STANDARD_CLIP_ENTRIES:
        return False
    specials = {STANDARD_CLIP_ENTRIES - 2, STANDARD_CLIP_ENTRIES - 1}
    return {word: index for word, index in vocabulary.items() if index not in specials} == {
        word: index for word, index in clip.items() if index not in specials
    }


# timm, which open_clip builds some image towers with, imports it for the logs of its own training.
UNUSED = ("wandb",)
_TOKENIZER = "open_clip.tokenizer"


def open_clip_library() -> ModuleType:
    """The whole library; takes seconds, and has timm for the towers that need it."""
    with _absent(UNUSED):
        import open_clip

    return open_clip  # type: ignore[no-any-return]


def simple_tokenizer(context_length: int) -> Any:
    """CLIP's own tokenizer as open_clip has it; its file needs nothing else of open_clip."""
    return _tokenizer_module().SimpleTokenizer(context_length=context_length)


def _tokenizer_module() -> Any:
    return sys.modules.get(_TOKENIZER) or _tokenizer_alone()


def _tokenizer_alone() -> ModuleType:
    name = f"{__package__}._{_TOKENIZER.replace('.', '_')}"
    if name not in sys.modules:
        package = importlib.util.find_spec(_TOKENIZER.partition(".")[0])
        file = Path(package.origin).with_name("tokenizer.py") if package and package.origin else Path()
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise ImportError(f"open_clip has no file {file.name}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


@contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """While it lasts, these modules cannot be imported, unless they have been; their importers are prepared for it."""
    kept_out = [name for name in names if name not in sys.modules]
    # An entry of None makes the import an ImportError.
    for name in kept_out:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in kept_out:
            del sys.modules[name]
