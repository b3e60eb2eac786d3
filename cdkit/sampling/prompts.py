"""Prompts: from the command line and from files, and which of them are too long for the text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import ConfigError, InputError

if TYPE_CHECKING:
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
    return [prompt for prompt in prompts if len(tokenizer(prompt, truncation=False).input_ids) > limit]


def unknown_tokens(prompts: Sequence[str], known: Sequence[str]) -> list[str]:
    """Words in angle brackets that no delta brings: the text encoder would take them for punctuation and letters."""
    used = dict.fromkeys(word for prompt in prompts for word in re.findall(r"<[^<>\s]+>", prompt))
    return [word for word in used if word not in known]
