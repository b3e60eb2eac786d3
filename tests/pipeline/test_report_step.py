"""A report step stands for the whole run: it runs last, and again when any other step changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdkit.core.protocols import SilentProgress
from cdkit.inputs import resolve_inputs
from cdkit.pipeline.plan import plan
from cdkit.pipeline.runner import RunResult, run
from cdkit.pipeline.spec import Pipeline, load

pytestmark = pytest.mark.usefixtures("adding")

CHAIN = """
name: chain
stages:
  page: {run: report}
  a: {run: adding}
  b: {run: adding, source: a, numbers: []}
"""


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN)
    return path


def _load(chain: Path, **overrides: Any) -> Pipeline:
    return load(chain, {key.replace("__", "."): value for key, value in overrides.items()}, chain.parent / "run")


def _run(pipeline: Pipeline, folder: Path) -> RunResult:
    return run(pipeline, folder, forced=set(), stop_after=None, progress=SilentProgress())


def test_it_runs_last_and_the_runner_names_its_page(chain: Path) -> None:
    pipeline = _load(chain)
    assert [step.name for step in pipeline.steps] == ["a", "b", "page"]
    assert pipeline.descendants("b") == {"b", "page"}
    result = _run(pipeline, chain.parent / "run")
    assert [entry.state for entry in result.results] == ["done"] * 3
    assert result.report == chain.parent / "run" / "page" / "report.html"


def test_it_is_cached_until_another_step_changes(chain: Path) -> None:
    folder = chain.parent / "run"
    _run(_load(chain), folder)
    assert [entry.state for entry in plan(_load(chain), folder)] == ["cached"] * 3
    assert [entry.state for entry in _run(_load(chain), folder).results] == ["cached"] * 3
    changed = _load(chain, b__plus=5)
    assert {entry.step.name: entry.state for entry in plan(changed, folder)} == {
        "a": "cached",
        "b": "stale",
        "page": "stale",
    }
    result = _run(changed, folder)
    assert [entry.state for entry in result.results] == ["cached", "done", "done"]
    assert [entry.state for entry in plan(changed, folder)] == ["cached"] * 3


def test_a_removed_step_makes_it_stale(chain: Path) -> None:
    folder = chain.parent / "run"
    _run(_load(chain), folder)
    before = resolve_inputs(_load(chain).steps[-1].config)["run_folder"].fingerprint
    (folder / "b" / "manifest.json").unlink()
    assert resolve_inputs(_load(chain).steps[-1].config)["run_folder"].fingerprint != before


def test_a_report_of_another_run_may_be_named(chain: Path, tmp_path: Path) -> None:
    folder = chain.parent / "run"
    _run(_load(chain), folder)
    other = tmp_path / "other.yaml"
    other.write_text(f"stages:\n  page: {{run: report, run_folder: {folder}}}\n")
    pipeline = load(other, {}, tmp_path / "elsewhere")
    assert pipeline.steps[0].needs == ()
    result = _run(pipeline, tmp_path / "elsewhere")
    assert (result.folder / "page" / "report.html").exists()
