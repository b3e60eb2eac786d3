"""How vocabularies write words: what marks the end or the start of a word, and what stands for a letter.

The rule "part of no other token" compares surface forms, which are entries without their mark. It means in each kind:

- CLIP (both of SDXL's): byte pairs, `</w>` ends a word. `sks</w>` is the word, `sks` the piece, and both are one form.
- byte-level BPE (GPT-2's kind: Qwen, Llama 3): `Ġ` is the blank before a word. `Ġsks` begins a word, `sks` goes on
  with one; whether a word ends is not marked, so that a form is part of every longer one, of its own plural too.
- SentencePiece (T5, UMT5: unigram; Gemma: BPE): `▁` is the blank before a word, letters are characters, not bytes.

Byte-level and SentencePiece vocabularies tell upper from lower case, CLIP's does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

END_OF_WORD = "</w>"
# A text that no merge joins with what follows it.
CONTEXT = "a"


@dataclass(frozen=True)
class Spelling:
    """One kind of vocabulary. mark: of words, at their end or start; in_bytes: a letter stands for one byte."""

    name: str
    mark: str
    at_end: bool
    in_bytes: bool
    lower_case: bool = False

    def letters(self, entry: str) -> str:
        """An entry without its mark: the surface form."""
        if entry == self.mark:
            return entry
        return entry.removesuffix(self.mark) if self.at_end else entry.removeprefix(self.mark)

    def is_word(self, entry: str) -> bool:
        """Whether an entry is marked as a word, or as a word's beginning."""
        return entry != self.mark and (entry.endswith if self.at_end else entry.startswith)(self.mark)

    def forms(self, letters: str) -> tuple[str, str]:
        """The two entries of a surface form: within a word, and as one."""
        return letters, letters + self.mark if self.at_end else self.mark + letters

    def spelt(self, text: str) -> str:
        """A text in the letters of this vocabulary."""
        if not self.in_bytes or (text.isascii() and text.isalnum()):
            return text
        from tokenizers import pre_tokenizers

        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return "".join(piece for piece, _ in pieces)

    def read(self, letters: str) -> str | None:
        """Letters as text; None for a piece of a character (not valid UTF-8 by itself)."""
        if letters.isascii() or not self.in_bytes:
            return letters
        from tokenizers import decoders

        shown: str = decoders.ByteLevel().decode([letters])
        return None if "\ufffd" in shown else shown


CLIP_SPELLING = Spelling("CLIP's byte pairs", END_OF_WORD, at_end=True, in_bytes=True, lower_case=True)
BYTE_LEVEL = Spelling("byte-level BPE", "Ġ", at_end=False, in_bytes=True)
SENTENCEPIECE = Spelling("SentencePiece", "▁", at_end=False, in_bytes=False)
SPELLINGS = (CLIP_SPELLING, BYTE_LEVEL, SENTENCEPIECE)


def spelling_of(facts: Mapping[str, Any], entries: Iterable[str]) -> Spelling | None:
    """The kind of vocabulary of a tokenizer (its JSON); None for one that is neither of the three."""
    model = facts["model"]
    if model["type"] == "BPE" and model.get("end_of_word_suffix") == END_OF_WORD:
        return CLIP_SPELLING
    if model["type"] not in ("BPE", "Unigram") or model.get("end_of_word_suffix"):
        return None
    steps = (facts.get("pre_tokenizer"), facts.get("decoder"))
    if any(part["type"] == "ByteLevel" for step in steps for part in _parts(step)):
        return BYTE_LEVEL
    return SENTENCEPIECE if any(entry.startswith(SENTENCEPIECE.mark) for entry in entries) else None


def _parts(step: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if step is None:
        return ()
    return step.get("pretokenizers") or step.get("decoders") or (step,)
