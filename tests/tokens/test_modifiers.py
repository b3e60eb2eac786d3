"""Initializers: picks read back, the paper's own, and names that are or are not one token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from cdkit.core.errors import ConfigError, InputError
from cdkit.tokens.modifiers import Neighbour, Pick, choose_initializers, read_picks, resolve_initializer


def test_the_papers_own_without_picks(clip_tokenizer: CLIPTokenizer) -> None:
    chosen = choose_initializers(None, ["<new1>", "<new2>", "<new3>"])
    assert [resolve_initializer(clip_tokenizer, pick) for pick in chosen] == [42170, 47629, 43514]
    assert [pick.token_id for pick in chosen] == [42170, 47629, 43514]
    assert choose_initializers([], ["<new1>"]) == chosen[:1]


def test_picks_first_then_the_papers_own_all_distinct() -> None:
    words = [f"<new{number}>" for number in range(1, 5)]
    chosen = choose_initializers([Pick("miff", 49398, 5), Pick("pll</w>", 25266, 7)], words)
    assert [pick.token for pick in chosen] == ["miff", "pll</w>", "ktn", "ucd</w>"]
    with pytest.raises(ConfigError, match="4 concepts need 4 initializers"):
        choose_initializers(None, words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["<new2>"], ["pll"]),
        (["<new3>", "<new1>"], ["ucd</w>", "ktn"]),
        (["<dog>", "<new1>", "<cat>"], ["pll", "ktn", "ucd</w>"]),
        # None of that number is left; a leading zero is no number of the series.
        (["<new7>", "<new1>"], ["pll", "ktn"]),
        (["<new01>", "<new1>"], ["pll", "ktn"]),
        (["<new0>"], ["ktn"]),
    ],
)
def test_a_numbered_word_takes_the_initializer_of_its_number(words: list[str], expected: list[str]) -> None:
    assert [pick.token for pick in choose_initializers(None, words)] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (42170, 42170),
        ("42170", 42170),
        ("ktn", 42170),
        ("pll", 47629),
        ("ucd", 43514),
        ("pll</w>", 25266),
        ("ucd</w>", 43514),
        # The word, not the word piece of the same spelling.
        ("cat", 2368),
        (" Cat ", 2368),
        (Pick("pll", 47629), 47629),
        (Pick("cat", 0), 1481),
    ],
)
def test_resolving(clip_tokenizer: CLIPTokenizer, given: Pick | str | int, expected: int) -> None:
    assert resolve_initializer(clip_tokenizer, given) == expected


@pytest.mark.parametrize("given", ["moongate of the sea", "ktnn", "", "犬犬犬", 49408, -1, "99999", Pick("nosuch", 1)])
def test_what_is_not_one_token(clip_tokenizer: CLIPTokenizer, given: Pick | str | int) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_initializer(clip_tokenizer, given)
    assert "cdkit tokens rare" in raised.value.hint


def test_several_tokens_are_shown(clip_tokenizer: CLIPTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"but 2 \(moon</w> gate</w>\)"):
        resolve_initializer(clip_tokenizer, "moon gate")


def test_picks_survive_the_file(tmp_path: Path) -> None:
    picks = [Pick("miff", 49398, 5, 48886, (Neighbour("niff", 0.25),)), Pick("ktn", 42170)]
    (tmp_path / "picks.json").write_text(json.dumps({"format": 1, "picks": [pick.as_json() for pick in picks]}))
    assert read_picks(tmp_path) == picks


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "holds no picks.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "picks": [{"token": 5, "token_id": 1}]}', "damaged"),
        ('{"format": 1, "picks": [{"token": "a", "token_id": "x"}]}', "damaged"),
        ('{"format": 1, "picks": ["ktn"]}', "damaged"),
        ('{"format": 99, "picks": []}', "newer cdkit"),
    ],
)
def test_folders_without_readable_picks(tmp_path: Path, content: str | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "picks.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_picks(tmp_path)
