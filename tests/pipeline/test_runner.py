from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdkit.core.errors import ConfigError, InputError, OutputError, PartialError
from cdkit.core.protocols import SilentProgress
from cdkit.core.storage import read_json
from cdkit.pipeline.plan import plan
from cdkit.pipeline.runner import RunResult, forced_steps, run
from cdkit.pipeline.spec import Pipeline, load

pytestmark = pytest.mark.usefixtures("adding")

CHAIN = """
name: chain
vars: {plus: 1}
stages:
  a: {run: adding, plus: "${plus}"}
  b: {run: adding, source: a, numbers: []}
  c: {run: adding, numbers: [7]}
  d: {run: adding, source: b}
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN)
    return path


def _load(chain: Path, **overrides: Any) -> Pipeline:
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return load(chain, values, chain.parent / "run")


def _run(pipeline: Pipeline, folder: Path, **options: Any) -> RunResult:
    chosen = {"forced": set(), "stop_after": None, "progress": SilentProgress(), **options}
    return run(pipeline, folder, **chosen)


def _states(pipeline: Pipeline, folder: Path) -> dict[str, str]:
    return {entry.step.name: entry.state for entry in plan(pipeline, folder)}


def test_a_runs_record_holds_no_passwords(chain: Path) -> None:
    chain.write_text(CHAIN.replace("plus: 1", "plus: 1, mirror: 'http://user:secret@a.test/x'"))
    _run(_load(chain), chain.parent / "run")
    record = read_json(chain.parent / "run" / "run.json")
    assert record["vars"] == {"plus": 1, "mirror": "http://a.test/x"}


def test_the_second_run_is_cached_and_a_change_reruns_exactly_its_descendants(chain: Path) -> None:
    folder = chain.parent / "run"
    assert [result.state for result in _run(_load(chain), folder).results] == ["done"] * 4
    assert [result.state for result in _run(_load(chain), folder).results] == ["cached"] * 4
    changed = _load(chain, plus=5)
    assert _states(changed, folder) == {"a": "stale", "b": "stale", "c": "cached", "d": "stale"}
    reasons = {entry.step.name: entry.reason for entry in plan(changed, folder)}
    assert reasons["a"] == "plus: 1 → 5"
    assert reasons["b"] == "input source changed"
    result = _run(changed, folder)
    assert [entry.state for entry in result.results] == ["done", "done", "cached", "done"]
    assert [entry["state"] for entry in result.as_json()["stages"]] == ["done", "done", "cached", "done"]


def test_an_error_names_its_stage_and_the_rerun_continues(chain: Path) -> None:
    folder = chain.parent / "run"
    with pytest.raises(InputError, match="stage 'b': cannot add to 3"):
        _run(_load(chain, b__fail_at=3), folder)
    assert _states(_load(chain), folder) == {"a": "cached", "b": "run", "c": "run", "d": "run"}
    assert [result.state for result in _run(_load(chain), folder).results] == ["cached", "done", "done", "done"]


def test_from_and_stop_after(chain: Path) -> None:
    folder = chain.parent / "run"
    pipeline = _load(chain)
    assert _run(pipeline, folder, stop_after="b").names == ("a", "b")
    _run(pipeline, folder)
    forced = forced_steps(pipeline, force=False, from_step="b")
    assert forced == {"b", "d"}
    assert [result.state for result in _run(pipeline, folder, forced=forced).results] == [
        "cached",
        "done",
        "cached",
        "done",
    ]
    with pytest.raises(ConfigError, match="no stage 'x'"):
        forced_steps(pipeline, force=False, from_step="x")


def test_stop_after_runs_only_what_it_needs(chain: Path) -> None:
    folder = chain.parent / "run"
    pipeline = _load(chain)
    assert _run(pipeline, folder, stop_after="d").names == ("a", "b", "d")
    assert not (folder / "c").exists()
    assert _run(pipeline, folder, stop_after="c").names == ("c",)
    # What the others lack, or what is forced of them, does not concern it.
    assert _run(_load(chain, c__source=str(chain.parent / "gone")), folder, stop_after="b").names == ("a", "b")
    forced = forced_steps(pipeline, force=False, from_step="c")
    assert [entry.state for entry in _run(pipeline, folder, forced=forced, stop_after="b").results] == ["cached"] * 2
    assert [entry.step.name for entry in plan(pipeline.up_to("b"), folder)] == ["a", "b"]


def test_a_whole_run_step_needs_all_the_others(chain: Path) -> None:
    chain.write_text(CHAIN + "  page: {run: report}\n")
    assert [step.name for step in _load(chain).up_to("page").steps] == ["a", "b", "c", "d", "page"]
    assert [step.name for step in _load(chain).up_to("b").steps] == ["a", "b"]


@pytest.mark.parametrize("name", ["bb", "B", "a-b", ""])
def test_a_stage_that_is_not_there_is_named_with_the_nearest(chain: Path, name: str) -> None:
    for refused in (
        lambda: forced_steps(_load(chain), force=False, from_step=name or "x"),
        lambda: _run(_load(chain), chain.parent / "run", forced=set(), stop_after=name or "x"),
    ):
        with pytest.raises(ConfigError, match="The pipeline has no stage") as caught:
            refused()
        assert "did you mean 'b'" in str(caught.value) or "known: a, b, c, d" in str(caught.value)
        assert caught.value.hint == "Its stages are a, b, c, d."
    assert not (chain.parent / "run").exists()


def test_a_stage_that_found_nothing_at_all_stops_the_run_there(chain: Path) -> None:
    folder = chain.parent / "run"
    for _ in range(2):
        # The second time it is found done, and says the same.
        with pytest.raises(PartialError, match=r"stage 'c': 0 of 9 numbers") as caught:
            _run(_load(chain, c__numbers=[], c__wanted=9), folder)
        assert "stops here" in caught.value.hint
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["a", "b", "c"]
    assert [result.state for result in _run(_load(chain, c__wanted=9), folder).results] == [
        *("cached", "cached", "partial", "done")
    ]


def test_a_run_inside_an_input_of_its_own_is_refused_before_anything_is_made(chain: Path) -> None:
    photos = chain.parent / "photos"
    photos.mkdir()
    (photos / "1.jpg").touch()
    chain.write_text(CHAIN.replace("source: b", f"source: {photos}"))
    for folder in (photos / "run", photos / "deep" / "run"):
        with pytest.raises(OutputError, match="lies in the input"):
            _run(load(chain, {}, folder), folder)
    assert [path.name for path in photos.iterdir()] == ["1.jpg"]
    assert _run(_load(chain), chain.parent / "run").results[-1].state == "done"


def test_a_shortfall_does_not_stop_the_rest(chain: Path) -> None:
    result = _run(_load(chain, a__wanted=99), chain.parent / "run")
    assert [entry.state for entry in result.results] == ["partial", "done", "done", "done"]
    assert result.shortfalls == ["a: 3 of 99 numbers"]


def test_missing_inputs_are_all_named(chain: Path) -> None:
    chain.write_text("stages:\n  a: {run: adding, source: gone}\n  b: {run: adding, source: lost}\n")
    with pytest.raises(InputError, match=r"(?s)2 inputs.*gone.*lost"):
        plan(_load(chain), chain.parent / "run")


def test_an_input_that_stages_share_is_named_once(chain: Path) -> None:
    chain.write_text("stages:\n  a: {run: adding, source: gone}\n  b: {run: adding, source: gone}\n")
    with pytest.raises(InputError, match=r"^gone does not exist\.$"):
        plan(_load(chain), chain.parent / "run")


def test_a_foreign_folder_is_refused(chain: Path) -> None:
    folder = chain.parent / "run"
    folder.mkdir()
    (folder / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="holds no cdkit run"):
        _run(_load(chain), folder)
