from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdkit.errors import ConfigError
from cdkit.merging.features import caption_rows, concept_constraints
from cdkit.weights.apply import apply_deltas
from cdkit.weights.text_features import encode_ids, text_towers, token_ids
from tests.merging.conftest import loaded
from tests.support.made_deltas import made_delta

CAPTIONS = ["photo of a cat", "dog", "a photo " * 60, "cat of dog"]


def _hidden(pipeline: object, prompt: str) -> torch.Tensor:
    towers = text_towers(pipeline)  # type: ignore[arg-type]
    with torch.no_grad():
        return encode_ids(towers, token_ids(towers, [prompt])).hidden[0]


def test_rows_are_the_pipelines_own_features_scaled_by_their_weights(base: Path) -> None:
    pipeline = loaded(base)
    counts = [1, 9, 1, 4]
    rows = caption_rows(text_towers(pipeline), CAPTIONS, counts, edge_weight=0.25)
    lengths = [len(pipeline.tokenizer(caption, truncation=True).input_ids) for caption in CAPTIONS]
    # Words and end of text of each, one padding of those that have any, and the start token once.
    assert len(rows) == sum(length - 1 for length in lengths) + sum(length < 77 for length in lengths) + 1
    wanted = []
    for caption, count, length in zip(CAPTIONS, counts, lengths, strict=True):
        hidden = _hidden(pipeline, caption)
        wanted.append(hidden[1:length] * count**0.5)
        wanted.append(hidden[length : length + 1] * (0.25 * count) ** 0.5)
    wanted.append(_hidden(pipeline, "dog")[:1] * (0.25 * sum(counts)) ** 0.5)
    gram = torch.cat(wanted).T @ torch.cat(wanted)
    assert torch.allclose(rows.T @ rows, gram, rtol=1e-4, atol=1e-4)
    without = caption_rows(text_towers(pipeline), CAPTIONS, counts, edge_weight=0.0)
    assert len(without) == sum(length - 1 for length in lengths)


@pytest.mark.parametrize("rows", [1, 3])
def test_places_are_modifier_category_and_end_of_text(base: Path, rows: int) -> None:
    pipeline = loaded(base)
    delta = made_delta(pipeline, category="cat dog", rows=rows)
    words = [*["<new1>", "<new1>_1", "<new1>_2"][:rows], "cat", "dog", "end of text"]
    with apply_deltas(pipeline, [delta]):
        found = concept_constraints(text_towers(pipeline), [delta])
        assert [place.word for place in found.places] == 2 * words
        for start, prompt in ((0, "photo of a <new1> cat dog"), (len(words), "<new1> cat dog")):
            written = pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)
            length = len(pipeline.tokenizer(written).input_ids)
            hidden = _hidden(pipeline, written)[length - len(words) : length]
            assert torch.allclose(found.features[start : start + len(words)], hidden, atol=1e-5)
        shorter = concept_constraints(text_towers(pipeline), [delta], end_of_text=False)
        assert [place.word for place in shorter.places] == 2 * words[:-1]


def test_a_delta_without_a_token_goes_by_its_category(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    delta = made_delta(pipeline, tokens=(), category="cat")
    towers = text_towers(pipeline)
    found = concept_constraints(towers, [delta])
    assert [(place.prompt, place.word) for place in found.places] == [
        ("photo of a cat", "cat"),
        ("photo of a cat", "end of text"),
        ("cat", "cat"),
        ("cat", "end of text"),
    ]
    with pytest.raises(ConfigError, match="no word to merge it by"):
        concept_constraints(towers, [replace(delta, settings={})])
    with pytest.raises(ConfigError, match="not within"):
        concept_constraints(towers, [replace(delta, prompts=("dog " * 80 + "cat",))])


def test_a_token_without_prompts_stands_alone(bases: dict[str, Path]) -> None:
    pipeline = loaded(bases["one"])
    delta = replace(made_delta(pipeline), prompts=())
    with apply_deltas(pipeline, [delta]):
        found = concept_constraints(text_towers(pipeline), [delta])
    assert [(place.prompt, place.word) for place in found.places] == [
        ("photo of a <new1>", "<new1>"),
        ("photo of a <new1>", "end of text"),
        ("<new1>", "<new1>"),
        ("<new1>", "end of text"),
    ]
