"""Every shipped pipeline: valid as it stands and on the embedded model, its variables explained, its run planned."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from cdkit import embedded
from cdkit.core.errors import InputError
from cdkit.embedded.pool import write_pool
from cdkit.evaluation.scoring import FEW_PROMPTS
from cdkit.pipeline import spec
from cdkit.pipeline.plan import plan

NAMES = sorted(spec.shipped("pipelines"))
DESIGNED = [
    "laion400m-index",
    "merge-table",
    "one-concept",
    "paper-table",
    "quickstart",
    "regularization-set",
    "two-concepts-joint",
    "two-concepts-merged",
]
OWN = {"base": "embedded"}


def _load(name: str, tmp_path: Path, **overrides: Any) -> spec.Pipeline:
    return spec.load(spec.find(name), overrides, tmp_path / "run")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a pipeline that is only checked asks the network for something")

    monkeypatch.setattr(socket.socket, "connect", refused)


def test_all_that_the_design_names_are_there() -> None:
    assert NAMES == DESIGNED


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_says_what_it_is_for(name: str, tmp_path: Path) -> None:
    pipeline = _load(name, tmp_path)
    assert pipeline.name == name
    assert len(pipeline.description) > 80


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_explained(name: str) -> None:
    """By a comment on its line, or above it and those it belongs to."""
    lines = spec.find(name).read_text(encoding="utf-8").splitlines()
    variables = yaml.safe_load("\n".join(lines))["vars"]
    start = lines.index("vars:")
    unexplained = []
    for variable in variables:
        place = next(n for n in range(start, len(lines)) if lines[n].startswith(f"  {variable}:"))
        above = place - 1
        # One comment may stand above several variables that belong together.
        while re.match(r"  \w+:", lines[above]) and "#" not in lines[above]:
            above -= 1
        if "#" not in lines[place] and not lines[above].strip().startswith("#"):
            unexplained.append(variable)
    assert not unexplained


@pytest.fixture
def _small_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded pool in small, in a cache of its own."""
    monkeypatch.setenv("CDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "write_pool", lambda folder: write_pool(folder, rows=100))


@pytest.mark.usefixtures("_small_pool")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "quickstart"])
def test_it_can_be_tried_on_what_ships_with_cdkit(name: str, tmp_path: Path) -> None:
    """With base=embedded alone every input is there: the plan asks for no file, no hub and no network."""
    pipeline = _load(name, tmp_path, **OWN)
    planned = plan(pipeline, tmp_path / "run")
    assert {entry.state for entry in planned} == {"run"}
    for step in pipeline.steps:
        values = step.config.model_dump()
        assert values.get("base", "embedded") in ("embedded", None)
        assert values.get("encoder", "embedded") in ("embedded", None)


@pytest.mark.usefixtures("_small_pool")
def test_the_tour_needs_nothing_set(tmp_path: Path) -> None:
    pipeline = _load("quickstart", tmp_path)
    assert {entry.state for entry in plan(pipeline, tmp_path / "run")} == {"run"}
    stages = [step.stage for step in pipeline.steps]
    assert list(dict.fromkeys(stages)) == [
        *("index", "retrieve", "tokens", "train", "merge", "sample", "evaluate", "report")
    ]


@pytest.mark.parametrize("name", ["one-concept", "regularization-set", "two-concepts-merged"])
def test_what_is_missing_for_a_real_run_is_named_at_once(name: str, tmp_path: Path) -> None:
    """The defaults are a real model and real files; none of them here, all are named."""
    pipeline = _load(name, tmp_path)
    with pytest.raises(InputError) as caught:
        plan(pipeline, tmp_path / "run")
    assert "laion400m-index/index does not exist" in str(caught.value)
    assert "photos/dog does not exist" in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_score_is_over_enough_prompts_for_its_interval(name: str, tmp_path: Path) -> None:
    """A shipped pipeline whose scores come with a warning teaches people to pass over warnings."""
    steps = {step.name: step for step in _load(name, tmp_path).steps}
    for step in steps.values():
        if step.stage == "evaluate":
            prompts = steps[Path(step.config.model_dump()["samples"]).name].config.model_dump()["prompts"]
            assert sum(re.search(r"<new\d>|sks", prompt) is not None for prompt in prompts) >= FEW_PROMPTS


def test_an_index_that_is_there_is_not_built_again(tmp_path: Path) -> None:
    steps = _load("one-concept", tmp_path, base="embedded", index=str(tmp_path / "mine")).steps
    assert "index" not in [step.stage for step in steps]


def test_the_papers_table_has_the_papers_rows_and_one_step_budget(tmp_path: Path) -> None:
    pipeline = _load("paper-table", tmp_path)
    configs = {step.name: step.config.model_dump() for step in pipeline.steps}
    table = configs["table"]
    assert sorted(table["single"]) == [
        *("custom-diffusion", "dreambooth", "fine-tune-all", "generated-regularization", "textual-inversion"),
        *("without-augmentation", "without-regularization"),
    ]
    assert sorted(table["multi"]) == ["joint", "merged", "sequential"]
    assert all(len(scores) == 3 for scores in table["single"].values())
    single = [configs[name] for name in configs if name.startswith("tuned-")]
    assert len(single) == 21
    assert len({config["steps"] for config in single}) == 1
    assert configs["joint"]["steps"] == 2 * configs["second"]["steps"] == 2 * single[0]["steps"]
    assert configs["second"]["delta"] == [str(tmp_path / "run" / "tuned-custom-diffusion-1")]
    drawn = [config for name, config in configs.items() if name.startswith("images-")]
    assert {config["steps"] for config in drawn} == {20}
    assert {config["seeds"] for config in drawn} == {8}
    words = ("<new1>", "<new2>", "sks")
    assert {sum(any(word in prompt for word in words) for prompt in config["prompts"]) for config in drawn} == {8}


def test_the_papers_scale_is_the_papers(tmp_path: Path) -> None:
    configs = {step.name: step.config.model_dump() for step in _load("paper-table", tmp_path, scale="paper").steps}
    images = configs["images-dreambooth-2"]
    assert (images["seeds"], images["steps"], images["scheduler"], images["guidance"]) == (50, 50, "ddpm", 6)
    assert sum("sks" in prompt for prompt in images["prompts"]) == 20
    assert configs["before-2"]["prompts"] == [prompt for prompt in images["prompts"] if "sks" not in prompt]
    assert configs["references-1"]["count"] == 500
    assert configs["scores-dreambooth-2"]["preset"] == "paper"
    real = {
        step.name: step.config.model_dump()
        for step in _load("paper-table", tmp_path, scale="paper", base="stabilityai/stable-diffusion-2-1").steps
    }
    steps = {name.removesuffix("-1"): real[name]["steps"] for name in real if re.fullmatch(r"tuned-.*-1", name)}
    assert steps["tuned-custom-diffusion"] == 250
    assert steps["tuned-dreambooth"] == 2500
    assert steps["tuned-textual-inversion"] == 5000
    assert real["joint"]["steps"] == 500
