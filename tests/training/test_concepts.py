from __future__ import annotations

from typing import Any

import pytest

from cdkit.core.errors import ConfigError, InputError
from cdkit.deltas.methods import METHODS
from cdkit.tokens.modifiers import Pick
from cdkit.training.concepts import Concept, describe_concepts, initializer_name


def _described(method: str = "custom-diffusion", **values: Any) -> list[Concept]:
    settings: dict[str, Any] = {
        "folders": {"dog": "a", "cat": "b"},
        "categories": {},
        "regularization": {},
        "words": {},
        "picks": None,
        "no_token": False,
        **values,
    }
    return describe_concepts(METHODS[method], **settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "photo of a <new1> dog"),
        ("a {} in the snow", "a <new1> dog in the snow"),
        ("a Dog and a hotdog", "a <new1> Dog and a hotdog"),
        ("my <new1> dog asleep", "my <new1> dog asleep"),
    ],
)
def test_captions_name_the_concept(given: str | None, expected: str) -> None:
    assert Concept("dog", "dog", "photos", "<new1>").caption_of(given, "photo of a {}") == expected


def test_without_a_word_captions_stay_as_they_are() -> None:
    concept = Concept("moongate", "moongate", "photos")
    assert concept.caption_of(None, "photo of a {}") == "photo of a moongate"
    assert concept.caption_of("a gate at night", "photo of a {}") == "a gate at night"


def test_a_caption_that_names_neither_word_nor_category_is_refused() -> None:
    with pytest.raises(InputError, match="neither <new1> nor 'dog'"):
        Concept("dog", "dog", "photos", "<new1>").caption_of("a hotdog", "photo of a {}")


def test_words_and_initializers_by_default_and_by_choice() -> None:
    found = _described()
    assert [(concept.word, initializer_name(concept.initializer)) for concept in found] == [
        ("<new1>", "ktn"),
        ("<new2>", "pll"),
    ]
    picks = [Pick("abc</w>", 7), Pick("xyz", 9)]
    found = _described(picks=picks, words={"dog": "<rex>=42"}, taken=["<new1>"], categories={"cat": "kitten"})
    assert [(concept.word, initializer_name(concept.initializer)) for concept in found] == [
        ("<rex>", "42"),
        ("<new3>", "abc</w>"),
    ]
    assert found[1].subject == "<new3> kitten"


def test_a_word_that_an_earlier_delta_brings_is_refused_and_passed_over() -> None:
    assert [concept.word for concept in _described(taken=["<new1>", "<new3>"])] == ["<new2>", "<new4>"]
    with pytest.raises(ConfigError, match="<new1>"):
        _described(taken=["<new1>"], words={"dog": "<new1>"})


def test_dreambooth_uses_rare_words_that_do_not_train() -> None:
    one = _described("dreambooth", folders={"dog": "a"})
    assert (one[0].subject, one[0].initializer) == ("sks dog", None)
    picked = _described("dreambooth", picks=[Pick("abc</w>", 7), Pick("xyz</w>", 9)])
    assert [concept.word for concept in picked] == ["abc", "xyz"]
    with pytest.raises(ConfigError, match="rare word of its own"):
        _described("dreambooth")


def test_no_token_means_no_word_and_no_initializer() -> None:
    assert all(not concept.word and concept.initializer is None for concept in _described(no_token=True))
