"""Constraints of a merge, and the captions' features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdkit.core.errors import ConfigError
from cdkit.deltas.apply import apply_deltas
from cdkit.deltas.delta import Delta
from cdkit.merging.constraints import Constraints, PromptReader, caption_rows, concept_constraints
from tests.merging.conftest import hidden_features, loaded
from tests.support.made_deltas import made_delta


def _hidden(pipeline: Any, prompt: str) -> torch.Tensor:
    """Features of a prompt's words, start and end of text included."""
    written = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
    return hidden_features(pipeline, written)[: len(pipeline.tokenizer(written).input_ids)]


def _added(pipeline: Any, *deltas: Delta) -> Constraints:
    """The constraints that tell concepts apart, which come behind those of every concept alone."""
    with apply_deltas(pipeline, deltas):
        alone = concept_constraints(PromptReader.of(pipeline), deltas, apart=False)
        both = concept_constraints(PromptReader.of(pipeline), deltas)
    size = len(alone.places)
    assert both.places[:size] == alone.places
    assert both.features[:size].equal(alone.features)
    assert alone.sources.equal(alone.features)
    return Constraints(both.places[size:], both.features[size:], both.sources[size:])


@pytest.mark.parametrize("rows", [1, 3])
def test_places_are_modifier_category_and_end_of_text(base: Path, rows: int) -> None:
    pipeline = loaded(base)
    delta = made_delta(pipeline, category="cat dog", rows=rows)
    words = [*["<new1>", "<new1>_1", "<new1>_2"][:rows], "cat", "dog", "end of text"]
    with apply_deltas(pipeline, [delta]):
        found = concept_constraints(PromptReader.of(pipeline), [delta])
        assert [place.word for place in found.places] == 2 * words
        for start, prompt in ((0, "photo of a <new1> cat dog"), (len(words), "<new1> cat dog")):
            hidden = _hidden(pipeline, prompt)[-len(words) :]
            assert torch.allclose(found.features[start : start + len(words)], hidden, atol=1e-5)
        shorter = concept_constraints(PromptReader.of(pipeline), [delta], end_of_text=False)
        assert [place.word for place in shorter.places] == 2 * words[:-1]


def test_a_delta_without_a_token_goes_by_its_category(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    delta = made_delta(pipeline, tokens=(), category="cat")
    towers = PromptReader.of(pipeline)
    found = concept_constraints(towers, [delta])
    assert [(place.prompt, place.word) for place in found.places] == [
        ("photo of a cat", "cat"),
        ("photo of a cat", "end of text"),
        ("cat", "cat"),
        ("cat", "end of text"),
    ]
    longer = replace(delta, prompts=("cat of a dog",))
    found = concept_constraints(towers, [longer], end_of_text=False)
    assert [(place.prompt, place.word) for place in found.places] == [("cat of a dog", "cat"), ("cat", "cat")]
    with pytest.raises(ConfigError, match="no word to merge it by"):
        concept_constraints(towers, [replace(delta, settings={})])
    with pytest.raises(ConfigError, match="not within"):
        concept_constraints(towers, [replace(delta, prompts=("dog " * 80 + "cat",))])


def test_a_token_without_prompts_stands_alone(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    delta = replace(made_delta(pipeline), prompts=())
    with apply_deltas(pipeline, [delta]):
        found = concept_constraints(PromptReader.of(pipeline), [delta])
    assert [(place.prompt, place.word) for place in found.places] == [
        ("photo of a <new1>", "<new1>"),
        ("photo of a <new1>", "end of text"),
        ("<new1>", "<new1>"),
        ("<new1>", "end of text"),
    ]


def test_a_concept_behind_another_gets_its_value_behind_the_plain_word(base: Path) -> None:
    pipeline = loaded(base)
    cat = made_delta(pipeline, seed=1, tokens=("<a>",), category="cat", rows=2)
    dog = made_delta(pipeline, seed=2, tokens=("<b>",), category="dog")
    added = _added(pipeline, cat, dog)
    prompts = {0: "photo of a <b> dog and a <a> <a>_1 cat", 1: "photo of a <a> <a>_1 cat and a <b> dog"}
    assert [(place.concept, place.prompt, place.word) for place in added.places] == [
        *((0, prompts[0], word) for word in ("<a>", "<a>_1", "cat")),
        *((1, prompts[1], word) for word in ("<b>", "dog")),
    ]
    with apply_deltas(pipeline, [cat, dog]):
        mixed = [_hidden(pipeline, "photo of a <b> dog and a <a> cat")[-4:-1]]
        mixed.append(_hidden(pipeline, "photo of a <a> cat and a <b> dog")[-3:-1])
        clean = [_hidden(pipeline, "photo of a dog and a <a> cat")[-4:-1]]
        clean.append(_hidden(pipeline, "photo of a cat and a <b> dog")[-3:-1])
    assert torch.allclose(added.features, torch.cat(mixed), atol=1e-5)
    assert torch.allclose(added.sources, torch.cat(clean), atol=1e-5)
    assert not torch.allclose(added.features, added.sources, atol=1e-2)


def test_only_concepts_of_other_deltas_with_a_modifier_and_a_plain_word_are_told_apart(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    joint = made_delta(pipeline, seed=1, tokens=("<a>", "<b>"))
    bare = replace(made_delta(pipeline, seed=2, tokens=("<c>",)), prompts=("photo of <c>",))
    added = _added(pipeline, joint, bare)
    # <a> and <b> learned together already; nothing but <c> is left of a prompt that it ends.
    assert {place.prompt for place in added.places} == {f"photo of a {word} cat and a <c>" for word in ("<a>", "<b>")}
    plain = made_delta(pipeline, seed=3, tokens=(), category="dog")
    added = _added(pipeline, plain, made_delta(pipeline, seed=4))
    assert [(place.concept, place.prompt, place.word) for place in added.places] == [
        (0, "photo of a <new1> cat and a dog", "dog")
    ]


def test_prompts_that_do_not_fit_beside_each_other_are_left_out(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    long = replace(made_delta(pipeline, seed=1, tokens=("<a>",)), prompts=("a " * 60 + "<a> cat",))
    short = replace(made_delta(pipeline, seed=2, tokens=("<b>",)), prompts=("<b> dog " + "of " * 20,))
    added = _added(pipeline, long, short)
    assert {place.prompt for place in added.places} == {f"{short.prompts[0]} and a <a> cat"}


CAPTIONS = ["photo of a cat", "dog", "a photo " * 60, "cat of dog"]


def test_rows_are_the_pipelines_own_features_scaled_by_their_weights(base: Path) -> None:
    pipeline = loaded(base)
    counts = [1, 9, 1, 4]
    rows = caption_rows(PromptReader.of(pipeline), CAPTIONS, counts, edge_weight=0.25)
    lengths = [len(pipeline.tokenizer(caption, truncation=True).input_ids) for caption in CAPTIONS]
    # Words and end of text of each, one padding of those that have any, and the start token once.
    assert len(rows) == sum(length - 1 for length in lengths) + sum(length < 77 for length in lengths) + 1
    wanted = []
    for caption, count, length in zip(CAPTIONS, counts, lengths, strict=True):
        hidden = hidden_features(pipeline, caption)
        wanted.append(hidden[1:length] * count**0.5)
        wanted.append(hidden[length : length + 1] * (0.25 * count) ** 0.5)
    wanted.append(hidden_features(pipeline, "dog")[:1] * (0.25 * sum(counts)) ** 0.5)
    gram = torch.cat(wanted).T @ torch.cat(wanted)
    assert torch.allclose(rows.T @ rows, gram, rtol=1e-4, atol=1e-4)
    without = caption_rows(PromptReader.of(pipeline), CAPTIONS, counts, edge_weight=0.0)
    assert len(without) == sum(length - 1 for length in lengths)
