"""Prompts: from the command line and from files, and what of them the text encoder does not see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import ConfigError, InputError
from cdkit.text import same_word, whole_words
from cdkit.weights.text_features import text_towers

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from transformers import PreTrainedTokenizerBase


def gather_prompts(prompts: Sequence[str], file: str | None) -> list[str]:
    """The prompts given one by one, then those of a text file, one per line; blank lines and repeats are dropped.

    Raises InputError for an unreadable file and ConfigError when nothing is left.
    """
    lines = list(prompts)
    if file is not None:
        try:
            lines += Path(file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file} cannot be read: {error}", hint="Give a UTF-8 text file, one prompt a line."
            ) from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise ConfigError("There is no prompt.", hint="Give --prompt TEXT, or --prompts FILE with one prompt a line.")
    return found


def too_long(prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The prompts whose end the text encoder will not see: longer than its context with start and end tokens."""
    limit = tokenizer.model_max_length
    return [prompt for prompt in prompts if len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > limit]


def words_beyond(prompt: str, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Those of the words that stand in a prompt, but only behind what the text encoder reads of it.

    The tokenizer knows the modifier tokens among them.
    """
    limit = tokenizer.model_max_length
    beyond = []
    for word in words:
        found = whole_words(word).search(prompt)
        # Up to the word's end, with start and end tokens: the last place is the end token's.
        if found and len(tokenizer(prompt[: found.end()], truncation=False, verbose=False).input_ids) > limit:
            beyond.append(word)
    return beyond


def notes_on_prompts(prompts: Sequence[str], tokens: Sequence[str], pipeline: DiffusionPipeline) -> list[str]:
    """What the user should know before prompts are drawn: words nobody knows, and what the text encoder cuts off.

    tokens: the modifier tokens that deltas brought. A base that a delta was baked into knows its words, too.
    """
    known = list(dict.fromkeys([*tokens, *pipeline.tokenizer.get_added_vocab()]))
    notes = [
        f"No delta brings the word {word}: the prompt is read without it. Give --delta."
        for word in unknown_tokens(prompts, known)
    ]
    for prompt in prompts:
        tokenizers = [tower.tokenizer for tower in text_towers(pipeline)]
        beyond = [
            word
            for tokenizer in tokenizers
            for word in words_beyond(*_written_out(pipeline, tokenizer, prompt, known), tokenizer)
        ]
        if beyond:
            notes.append(
                f"{beyond[0].split()[0]} stands behind the {tokenizers[0].model_max_length} tokens that the text "
                f"encoder reads, and the prompt is drawn without it: {prompt[:60]}…"
            )
        elif any(too_long([prompt], tokenizer) for tokenizer in tokenizers):
            notes.append(f"Longer than the text encoder's context, its end is not seen: {prompt[:60]}…")
    return notes


def _written_out(
    pipeline: DiffusionPipeline, tokenizer: PreTrainedTokenizerBase, prompt: str, words: Sequence[str]
) -> tuple[str, list[str]]:
    """A prompt, and the words that stand in it, with a token of several rows as the entries that diffusers reads."""
    standing = [word for word in words if whole_words(word).search(prompt)]
    convert = getattr(pipeline, "maybe_convert_prompt", None)
    if convert is None:
        return prompt, standing
    return convert(prompt, tokenizer), [convert(word, tokenizer) for word in standing]


def unknown_tokens(prompts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Words in angle brackets that no delta brings: the text encoder would take them for punctuation and letters."""
    used = dict.fromkeys(word for prompt in prompts for word in re.findall(r"<[^<>\s]+>", prompt))
    spelt = {same_word(word) for word in known}
    return [word for word in used if same_word(word) not in spelt]
