"""What a pipeline may leave open: choices by a variable, stages repeated over lists, stages there only when needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdkit.core.errors import ConfigError
from cdkit.core.protocols import SilentProgress
from cdkit.inputs import resolve_inputs
from cdkit.pipeline.plan import plan
from cdkit.pipeline.runner import run
from cdkit.pipeline.spec import Pipeline, load

pytestmark = pytest.mark.usefixtures("adding")

CHOICE = """
name: choice
vars:
  scale: small
  amount: {by: scale, small: 1, large: 100}
  word: {by: amount, 1: one, else: "more than ${amount}"}
stages:
  a: {run: adding, plus: "${amount}", label: "${word}", numbers: {by: scale, small: [1], else: [1, 2, 3]}}
"""
EACH = """
name: each
vars:
  things: [{name: x, plus: 3}, {name: y, plus: 4}]
  doubled: ["1", "2"]
stages:
  "${t.name}-${d}": {each: {t: "${things}", d: "${doubled}"}, run: adding, plus: "${t.plus}", label: "no ${d}"}
  all: {run: adding, source: x-2}
"""
NEEDED = """
name: needed
vars: {source: made}
stages:
  made:  {run: adding, source: before, when_needed: true}
  before: {run: adding, when_needed: true}
  b: {run: adding, source: "${source}"}
  page: {run: report}
"""


def _load(tmp_path: Path, text: str, **overrides: Any) -> Pipeline:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return load(path, {key.replace("__", "."): value for key, value in overrides.items()}, tmp_path / "run")


def _configs(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    return {step.name: step.config.model_dump() for step in pipeline.steps}


def _mistakes(tmp_path: Path, text: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text, **overrides)
    return str(caught.value)


def test_a_choice_follows_the_variable_it_is_by(tmp_path: Path) -> None:
    small = _configs(_load(tmp_path, CHOICE))["a"]
    assert (small["plus"], small["label"], small["numbers"]) == (1, "one", [1])
    large = _configs(_load(tmp_path, CHOICE, scale="large"))["a"]
    assert (large["plus"], large["label"], large["numbers"]) == (100, "more than 100", [1, 2, 3])
    # A variable set by hand takes the place of its choice, and what is by it follows.
    by_hand = _configs(_load(tmp_path, CHOICE, amount=7))["a"]
    assert (by_hand["plus"], by_hand["label"], by_hand["numbers"]) == (7, "more than 7", [1])


def test_a_choice_without_a_case_lists_those_there_are(tmp_path: Path) -> None:
    text = _mistakes(tmp_path, CHOICE, scale="smal")
    assert "vars.amount: scale is 'smal', for which there is no case; did you mean 'small'?" in text
    assert "unknown variable 'scal'; did you mean 'scale'?" in _mistakes(
        tmp_path, CHOICE.replace("by: scale", "by: scal")
    )


def test_every_case_of_a_choice_is_checked(tmp_path: Path) -> None:
    assert "unknown variable ${amonut}" in _mistakes(tmp_path, CHOICE.replace("than ${amount}", "than ${amonut}"))


def test_a_stage_is_there_once_for_each_combination(tmp_path: Path) -> None:
    configs = _configs(_load(tmp_path, EACH))
    assert list(configs) == ["x-1", "x-2", "y-1", "y-2", "all"]
    assert [config["plus"] for config in configs.values()] == [3, 3, 4, 4, 1]
    assert configs["y-2"]["label"] == "no 2"
    assert configs["all"]["source"] == str(tmp_path / "run" / "x-2")
    assert _configs(_load(tmp_path, EACH, **{"y-1__plus": 9}))["y-1"]["plus"] == 9
    assert list(_configs(_load(tmp_path, EACH, doubled=["2"]))) == ["x-2", "y-2", "all"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ('"${t.name}": {each', "there are two stages called 'x'"),
        ('"${t.nmae}-${d}": {each', "unknown variable ${t.nmae}"),
        ('"${t.name.first}-${d}": {each', "unknown variable ${t.name.first}"),
    ],
)
def test_names_must_tell_the_copies_apart(tmp_path: Path, wrong: str, words: str) -> None:
    assert words in _mistakes(tmp_path, EACH.replace('"${t.name}-${d}": {each', wrong))


@pytest.mark.parametrize("lists", ["[]", "{}", "{t: x}", "{t: []}", '{t: "${scale}"}', "3"])
def test_each_takes_lists(tmp_path: Path, lists: str) -> None:
    text = f'vars: {{scale: 1}}\nstages: {{"a-${{t}}": {{each: {lists}, run: adding}}, b: {{run: adding}}}}'
    assert "stages.a-${t}.each: must be a mapping of a name to a list" in _mistakes(tmp_path, text)


def test_a_stage_that_nothing_needs_is_left_out(tmp_path: Path) -> None:
    assert [step.name for step in _load(tmp_path, NEEDED).steps] == ["before", "made", "b", "page"]
    pipeline = _load(tmp_path, NEEDED, source=str(tmp_path))
    assert [step.name for step in pipeline.steps] == ["b", "page"]
    # A report, which is about the whole run, does not make it needed.
    assert pipeline.steps[-1].needs == ("b",)
    assert "when_needed: must be true or false" in _mistakes(tmp_path, NEEDED.replace("needed: true", "needed: maybe"))


def test_a_model_that_a_stage_makes_is_known_before_and_after_it_is_made(tmp_path: Path) -> None:
    text = """
name: model
stages:
  a: {run: adding}
  moved: {run: weight-change, tuned: a}
"""
    pipeline = _load(tmp_path, text)
    planned = plan(pipeline, tmp_path / "run")
    run(pipeline, tmp_path / "run", forced=set(), stop_after="a", progress=SilentProgress())
    after = resolve_inputs(pipeline.steps[-1].config)["tuned"].fingerprint
    assert planned[0].state == "run"
    assert plan(pipeline, tmp_path / "run")[0].state == "cached"
    before = resolve_inputs(pipeline.steps[-1].config, {(tmp_path / "run" / "a").resolve(): "fingerprint"})[
        "tuned"
    ].fingerprint
    assert before == "fingerprint"
    manifest = (tmp_path / "run" / "a" / "manifest.json").read_text()
    assert after in manifest
