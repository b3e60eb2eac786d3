"""Prompts without their modifier tokens: what a CLIP that never saw the tokens should compare images with."""

from __future__ import annotations

import re
from collections.abc import Sequence

# What cdkit and the public Custom Diffusion scripts call modifier tokens: <new1>, <my-dog>.
_ANGLED = re.compile(r"<[^<>\s]+>")
_SPACE_BEFORE_MARK = re.compile(r"\s+([.,;:!?])")


def find_tokens(prompt: str, tokens: Sequence[str] = ()) -> list[str]:
    """The modifier tokens in a prompt: those named, as whole words, and any word in angle brackets."""
    named = [token for token in tokens if re.search(_whole_word(token), prompt)]
    return list(dict.fromkeys([*named, *_ANGLED.findall(prompt)]))


def without_tokens(prompt: str, tokens: Sequence[str] = ()) -> str:
    """The prompt with its modifier tokens taken out (Custom Diffusion, appendix D): `a <new1> dog` is `a dog`."""
    for token in tokens:
        prompt = re.sub(_whole_word(token), " ", prompt)
    plain = " ".join(_ANGLED.sub(" ", prompt).split())
    return _SPACE_BEFORE_MARK.sub(r"\1", plain)


def _whole_word(token: str) -> str:
    return rf"(?<!\w){re.escape(token)}(?!\w)"
