"""Prompts without their modifier tokens: what a CLIP that never saw the tokens should compare images with."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cdkit.text import whole_words

# What cdkit and the public Custom Diffusion scripts call modifier tokens: <new1>, <my-dog>.
_ANGLED = re.compile(r"<[^<>\s]+>")
_SPACE_BEFORE_MARK = re.compile(r"\s+([.,;:!?])")


def find_tokens(prompt: str, tokens: Sequence[str] = ()) -> list[str]:
    """The modifier tokens in a prompt: those named, as whole words, and any word in angle brackets."""
    named = [token for token in tokens if whole_words(token).search(prompt)]
    return list(dict.fromkeys([*named, *_ANGLED.findall(prompt)]))


def without_tokens(prompt: str, tokens: Sequence[str] = ()) -> str:
    """The prompt with its modifier tokens taken out (Custom Diffusion, appendix D): `a <new1> dog` is `a dog`."""
    plain = " ".join(_ANGLED.sub(" ", whole_words(*tokens).sub(" ", prompt)).split())
    return _SPACE_BEFORE_MARK.sub(r"\1", plain)
