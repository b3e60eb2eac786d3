"""Vocabularies and tokenizers of text towers, and how they are loaded: CLIP's own, or those of a base model."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from cdkit.core.errors import InputError, NetworkError
from cdkit.core.fingerprints import EMBEDDED
from cdkit.core.formatting import first_line
from cdkit.tokens.config import CLIP
from cdkit.tokens.spelling import CLIP_SPELLING, CONTEXT, SPELLINGS, Spelling, spelling_of

# CLIP's own way to split a text into words, as transformers writes it with and without the special tokens.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_PATTERNS = {_CLIP_WORDS, r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP_WORDS}
_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
_SPACES: tuple[dict[str, str], ...] = ({"Regex": r"\s+"}, {"String": " "})
_TRANSFORMERS = "transformers:"
# SDXL has two of CLIP's, FLUX one of CLIP's and T5's, SD 3 both and T5's, HiDream a fourth.
_FOLDERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json", "spiece.model", "vocab.txt")
_HUB_PATTERNS = (
    *(f"{folder}/*" for folder in _FOLDERS),
    *_TOKENIZER_FILES,
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)


def letters_of(entry: str) -> str:
    """A vocabulary entry without the mark of a word, of whichever kind of vocabulary it is: the surface form."""
    spelling = next((spelling for spelling in SPELLINGS if spelling.is_word(entry)), None)
    return entry if spelling is None else spelling.letters(entry)


@dataclass(frozen=True)
class Vocabulary:
    """The entries of a tokenizer by id ("" for ids that stand for nothing), its merges in order, its special ids.

    spelling: how it writes words, None where that is not known; commonest_first: the entries of one without merges in
    the order of their probabilities.
    """

    entries: tuple[str, ...] = field(repr=False)
    merges: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    specials: frozenset[int] = frozenset()
    spelling: Spelling | None = CLIP_SPELLING
    commonest_first: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Entry to id."""
        return {entry: index for index, entry in enumerate(self.entries) if entry}

    @cached_property
    def letters(self) -> tuple[str, ...]:
        """The surface form of every id."""
        if self.spelling is None:
            return self.entries
        return tuple(self.spelling.letters(entry) for entry in self.entries)

    @cached_property
    def merge_ranks(self) -> dict[str, int]:
        """Entry to the rank of the merge that makes it: the higher, the rarer in the tokenizer's own training.

        Of a vocabulary without merges the place in the order of probabilities, which says the same.
        """
        ranks = {entry: rank for rank, entry in enumerate(self.commonest_first)}
        for rank, (first, second) in enumerate(self.merges):
            ranks.setdefault(first + second, rank)
        return ranks

    @cached_property
    def _joined(self) -> tuple[str, list[int]]:
        # Byte letters never include a newline, so one C-speed search runs over the whole vocabulary at once.
        starts = [0, *accumulate(len(letters) + 1 for letters in self.letters[:-1])]
        return "\n".join(self.letters), starts

    def containing(self, letters: str) -> Iterator[int]:
        """Ids whose surface form contains `letters` and is longer (twins with and without end-of-word are no hits)."""
        text, starts = self._joined
        at = text.find(letters) if letters else -1
        while at >= 0:
            index = bisect_right(starts, at) - 1
            if len(self.letters[index]) > len(letters):
                yield index
            following = starts[index + 1] if index + 1 < len(starts) else len(text)
            at = text.find(letters, following)

    def text(self, index: int) -> str | None:
        """The surface form as text; None for a piece of a character (not valid UTF-8 by itself)."""
        return self.letters[index] if self.spelling is None else self.spelling.read(self.letters[index])

    def is_word(self, index: int) -> bool:
        """Whether the id is marked as a word, or as its beginning."""
        return self.spelling is not None and self.spelling.is_word(self.entries[index])

    def spelt(self, text: str) -> str:
        """A text in this vocabulary's letters."""
        return text if self.spelling is None else self.spelling.spelt(text)

    def counterpart(self, other: Vocabulary, index: int) -> int | None:
        """The id here of what an id of another vocabulary is: the same form, a word or a piece; None without one."""
        if self.spelling == other.spelling:
            return self.ids.get(other.entries[index])
        text = other.text(index)
        if text is None or self.spelling is None:
            return None
        piece, word = self.spelling.forms(self.spelt(text))
        return self.ids.get(word if other.is_word(index) else piece)

    def require_ranks(self, where: str) -> None:
        """Raise InputError unless this is a kind of vocabulary the rule is known for, in order of frequency."""
        hint = "The rule is known for CLIP's kind of vocabulary, byte-level BPE (Qwen) and SentencePiece (T5, Gemma)."
        if self.spelling is None:
            raise InputError(f"The tokenizer of {where} does not mark where words begin or end.", hint=hint)
        if not self.merges and not self.commonest_first:
            raise InputError(f"The tokenizer of {where} has a vocabulary but no merges.", hint=hint)


@dataclass(frozen=True)
class Tower:
    """One text tower's tokenizer: its name in the model's folder (`tokenizer`, `tokenizer_2`) and its vocabulary."""

    name: str
    vocabulary: Vocabulary
    tokenizer: Any = field(repr=False)
    splits_at_spaces: bool = False

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text: not truncated, start and end tokens left out."""
        if hasattr(self.tokenizer, "encode_batch_fast"):
            return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        encoded = self.tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)
        return list(encoded["input_ids"])

    def encode_word(self, word: str) -> list[int]:
        """Token ids of a word as it stands within a prompt, behind a blank."""
        before, both = self.encode([CONTEXT, f"{CONTEXT} {word}"])
        return both[len(before) :] if both[: len(before)] == before else self.encode([word])[0]

    def same_as(self, other: Tower) -> bool:
        """Whether both towers turn every text into the same ids."""
        ours, theirs = self.tokenizer, other.tokenizer
        comparable = hasattr(ours, "to_str") and hasattr(theirs, "to_str")
        return comparable and _behaviour(ours) == _behaviour(theirs)


def tower_of(name: str, tokenizer: Any) -> Tower:
    """The tower of a transformers tokenizer (or of a `tokenizers.Tokenizer`)."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        specials = frozenset(int(index) for index in tokenizer.all_special_ids)
        return Tower(name, Vocabulary(_entries(tokenizer.get_vocab()), (), specials, spelling=None), tokenizer)
    from tokenizers import Tokenizer

    # A copy: a tokenizer.json may ask for truncation or padding, and the caller's tokenizer must stay as it is.
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    facts = json.loads(copy.to_str())
    model = facts["model"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges") or ())
    merges = tuple((first, second) for first, second in pairs)
    specials = frozenset(token["id"] for token in facts.get("added_tokens") or () if token["special"])
    ids = copy.get_vocab(with_added_tokens=True)
    # Unigram vocabularies hold pairs of a piece and its logarithmic probability.
    pieces = sorted(model["vocab"], key=lambda pair: -pair[1]) if model["type"] == "Unigram" else ()
    ordered = tuple(piece for piece, _ in pieces)
    vocabulary = Vocabulary(_entries(ids), merges, specials, spelling_of(facts, ids), ordered)
    return Tower(name, vocabulary, copy, splits_at_spaces(facts))


def splits_at_spaces(facts: Mapping[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) gives every space-separated piece of a text the same ids wherever it stands.

    True only for what is known to: per-character normalizers, CLIP's word pattern, no added token with a space in it.
    """
    normalizers = list(_steps(facts.get("normalizer"), "normalizers"))
    local = all(
        step["type"] in _LOCAL_NORMALIZERS
        or (step["type"] == "Replace" and step.get("content") == " " and step.get("pattern") in _SPACES)
        for step in normalizers
    )
    splitters = list(_steps(facts.get("pre_tokenizer"), "pretokenizers"))
    first = splitters[0] if splitters else {}
    pattern = (first.get("pattern") or {}).get("Regex")
    by_word = (
        first.get("type") == "Split"
        and pattern in _CLIP_PATTERNS
        and (first.get("behavior"), first.get("invert")) == ("Removed", True)
        and all(step["type"] == "ByteLevel" and not step.get("add_prefix_space") for step in splitters[1:])
    )
    plain = not any(" " in token["content"] for token in facts.get("added_tokens") or ())
    return local and by_word and plain


def _steps(part: Mapping[str, Any] | None, key: str) -> Iterable[Mapping[str, Any]]:
    if part is None:
        return ()
    return part[key] if part["type"] == "Sequence" else (part,)


def _behaviour(tokenizer: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(tokenizer.to_str())
    # How a batch is framed and decoded changes no id inside it.
    return {key: value for key, value in facts.items() if key not in ("post_processor", "decoder", "version")}


def _entries(ids: Mapping[str, int]) -> tuple[str, ...]:
    entries = [""] * (max(ids.values(), default=-1) + 1)
    for entry, index in ids.items():
        entries[index] = entry
    return tuple(entries)


def load_towers(spec: str) -> list[Tower]:
    """The tokenizers of `spec`: `clip` (the vocabulary that ships with open_clip), `embedded`, a folder or a hub id.

    A base model's folder gives one tower per text encoder (two for SDXL); a tokenizer's own folder gives one, also as
    `transformers:FOLDER`. Only a hub id is ever downloaded.

    Raises InputError when there is no usable tokenizer, NetworkError when the hub fails.
    """
    if spec in (CLIP, EMBEDDED) or spec.startswith(f"{EMBEDDED}:"):
        return [_clip()]
    spec = spec.removeprefix(_TRANSFORMERS)
    folder = Path(spec).expanduser()
    if folder.is_file():
        raise InputError(f"{spec} is a file, not a folder.", hint="Give the model's folder, a hub id, or 'clip'.")
    if not folder.is_dir():
        folder = _from_hub(spec)
    parts = [name for name in _FOLDERS if (folder / name).is_dir()]
    if parts:
        return [tower_of(name, _load(folder / name)) for name in parts]
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return [tower_of("tokenizer", _load(folder))]
    raise InputError(
        f"{spec} holds no tokenizer: no tokenizer/ folder and none of {', '.join(_TOKENIZER_FILES)}.",
        hint="Give a diffusers model folder or hub id, a tokenizer's folder, or 'clip'.",
    )


@lru_cache(maxsize=1)
def _clip() -> Tower:
    from cdkit.embedded.tokenizer import load_tokenizer

    return tower_of("tokenizer", load_tokenizer())


def _load(folder: Path) -> Any:
    present = {path.name for path in folder.iterdir()}
    if "vocab.json" in present and not present & {"merges.txt", "tokenizer.json"}:
        raise InputError(
            f"{folder} has a vocabulary (vocab.json) but no merges (merges.txt).",
            hint="Copy the model's whole tokenizer folder, or use --tokenizer clip.",
        )
    from transformers import AutoTokenizer, CLIPTokenizer

    # Without these two files transformers cannot tell the class, and old CLIP folders have neither.
    kind = AutoTokenizer if present & {"tokenizer_config.json", "config.json"} else CLIPTokenizer
    try:
        return kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # every backend has its own; all mean that the files cannot be used
        raise InputError(
            f"The tokenizer in {folder} cannot be loaded: {first_line(error)}",
            hint="The files may be truncated, or of a tokenizer this transformers does not know.",
        ) from error


def _from_hub(spec: str) -> Path:
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise InputError(f"{spec} does not exist.", hint="Give a model folder, a hub id, or 'clip'.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec, allow_patterns=list(_HUB_PATTERNS)))
    except Exception as error:  # httpx, hub and file-system errors alike
        raise NetworkError(
            f"The tokenizer of {spec} could not be fetched from the hub: {first_line(error)}",
            hint="Check the name and the network, or give a local model folder; 'clip' needs no download.",
        ) from error
