from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.deltas.delta import Delta, ModifierToken
from cdkit.merging.constraints import substitution
from cdkit.merging.stage import rename_tokens


def _delta(*texts: str, seed: int = 0) -> Delta:
    random = torch.Generator().manual_seed(seed)
    tokens = tuple(ModifierToken(text, "ktn", {"text_encoder": torch.randn(1, 4, generator=random)}) for text in texts)
    return Delta(
        "custom-diffusion", "tiny", "", tokens=tokens, prompts=tuple(f"photo of a {text} cat" for text in texts)
    )


def _texts(deltas: list[Delta]) -> list[list[str]]:
    return [[token.text for token in one.delta.tokens] for one in rename_tokens(deltas)]


def test_only_tokens_that_collide_are_renamed() -> None:
    assert _texts([_delta("<new1>", seed=1), _delta("<new1>", seed=2)]) == [["<new1>"], ["<new2>"]]
    assert _texts([_delta("<a>", seed=1), _delta("<b>", seed=2)]) == [["<a>"], ["<b>"]]
    assert _texts([_delta("<new2>", seed=1), _delta("<x>", seed=2), _delta("<x>", seed=3)]) == [
        ["<new2>"],
        ["<new1>"],
        ["<new3>"],
    ]
    joint = _texts([_delta("<new1>", "<new2>", seed=1), _delta("<new2>", "<new1>", seed=2), _delta(seed=3)])
    assert joint == [["<new1>", "<new2>"], ["<new3>", "<new4>"], []]


def test_prompts_follow_their_tokens_all_at_once() -> None:
    first, second = rename_tokens([_delta("<new1>", "<new2>", seed=1), _delta("<new2>", "<new1>", seed=2)])
    assert first.delta.prompts == ("photo of a <new1> cat", "photo of a <new2> cat")
    assert second.delta.prompts == ("photo of a <new3> cat", "photo of a <new4> cat")
    assert second.former == {"<new3>": "<new2>", "<new4>": "<new1>"}
    swap = substitution({"sks": "pll", "pll": "sks", "<a>": "<b>"})
    assert swap("asks sks, pll and <a> but not <a>_1") == "asks pll, sks and <b> but not <a>_1"


def test_the_same_token_twice_is_refused() -> None:
    delta = _delta("<new1>")
    with pytest.raises(ConfigError, match="same token <new1>"):
        rename_tokens([delta, replace(delta, prompts=("another",))])
