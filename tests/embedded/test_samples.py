"""What the pipeline draws, read by the probe at a reduced n: the gates with room for chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cdkit.embedded import load_pipeline
from tests.embedded.quality import pair_questions, pair_rates, sample, single_questions, single_rates
from tests.support.attribute_probe import read_attributes


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline()


def test_one_object_is_what_the_prompt_says(pipeline: Any) -> None:
    questions = single_questions(48, seed=1)
    rates = single_rates(questions, read_attributes(sample(pipeline, [q.prompt for q in questions], seed=1)))
    assert rates["background"] >= 0.9
    assert rates["shape"] >= 0.9
    assert rates["pattern"] >= 0.8
    assert rates["colours"] >= 0.8
    assert rates["all"] >= 0.72


def test_two_objects_stand_where_the_prompt_says(pipeline: Any) -> None:
    questions = pair_questions(24, seed=2)
    rates = pair_rates(questions, read_attributes(sample(pipeline, [q.prompt for q in questions], seed=2)))
    assert rates["count"] >= 0.9
    assert rates["shapes_and_colours"] >= 0.75


def test_the_same_seed_gives_the_same_picture_in_any_batch(pipeline: Any) -> None:
    prompts = [question.prompt for question in single_questions(3, seed=3)]
    together = sample(pipeline, prompts, seed=3, steps=8)
    alone = sample(pipeline, prompts[:1], seed=3, steps=8)
    assert np.abs(together[0].astype(int) - alone[0].astype(int)).max() <= 2
    other = sample(pipeline, prompts[:1], seed=4, steps=8)
    assert np.abs(alone[0].astype(int) - other[0].astype(int)).max() > 20
