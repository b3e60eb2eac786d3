from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cdkit.cli.app import execute_command
from cdkit.cli.run import parse_overrides
from cdkit.core.errors import ConfigError

pytestmark = pytest.mark.usefixtures("adding")

PIPELINE = """
name: sums
description: adds twice
vars: {plus: 1}
stages:
  a: {run: adding, plus: "${plus}"}
  b: {run: adding, source: a, numbers: []}
"""


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("sums.yaml").write_text(PIPELINE)
    return "sums.yaml"


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, object]:
    assert execute_command([*arguments, "--format", "json"]) == code
    parsed = json.loads(capsys.readouterr().out)
    assert isinstance(parsed, dict)
    return parsed


def _states(document: dict[str, object], key: str = "stages") -> list[str]:
    entries = document[key]
    assert isinstance(entries, list)
    return [entry["state"] for entry in entries]


def test_run_goes_to_a_folder_of_the_pipelines_name(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _states(_run(capsys, "run", pipeline)) == ["done", "done"]
    assert Path("runs/sums/b/manifest.json").exists()
    assert _states(_run(capsys, "run", pipeline)) == ["cached", "cached"]
    assert _states(_run(capsys, "run", pipeline, "--set", "b.plus=3")) == ["cached", "done"]


def test_a_run_says_where_it_can_be_watched(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    for code in (0, 0):
        assert execute_command(["run", pipeline]) == code
        said = capsys.readouterr().err
        assert ("To watch it: runs/sums/live.html" in said) == ("[1/2] a: adding" in said)
    # The second time nothing is left to be made.
    assert "[1/2]" not in said
    assert "refresh" not in Path("runs/sums/live.html").read_text()


def test_dry_run_changes_nothing_and_says_why(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _states(_run(capsys, "run", pipeline, "--dry-run"), "plan") == ["run", "run"]
    assert not Path("runs").exists()
    _run(capsys, "run", pipeline)
    plan = _run(capsys, "run", pipeline, "--set", "plus=9", "--dry-run")["plan"]
    assert isinstance(plan, list)
    assert [(entry["state"], entry["reason"]) for entry in plan] == [
        ("stale", "plus: 1 → 9"),
        ("stale", "input source changed"),
    ]


def test_a_partial_stage_ends_the_run_with_5(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _states(_run(capsys, "run", pipeline, "--set", "a.wanted=9", code=5)) == ["partial", "done"]


def test_mistakes_exit_2_with_all_of_them(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(pipeline).write_text(PIPELINE.replace("plus: ", "plsu: ").replace("numbers", "numbrs"))
    error = _run(capsys, "run", pipeline, code=2)["error"]
    assert isinstance(error, dict)
    assert "did you mean 'plus'" in error["message"]
    assert "did you mean 'numbers'" in error["message"]


def test_validate_show_and_copy(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "pipeline", "validate", pipeline)["valid"] is True
    assert execute_command(["pipeline", "show", pipeline]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "sums"
    assert execute_command(["pipeline", "copy", pipeline, "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text() == PIPELINE
    assert execute_command(["pipeline", "copy", pipeline, "mine.yaml"]) == 7


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: a,", "source: aa,", "stages.b.source: 'aa' is no stage and no path; did you mean 'a'? (line 7)"),
        ("source: a,", "source: B,", "did you mean 'b'?"),
        ("source: a,", "source: nowhere,", "stages.b.source: 'nowhere' is no stage and no path (known: a, b)"),
        (
            "b: {run: adding, source: a,",
            'b: {run: adding, source: "${plsu}",',
            "unknown variable ${plsu}; did you mean",
        ),
        ("a: {run: adding,", "a: {run: ading,", "did you mean 'adding'?"),
    ],
)
def test_validate_finds_misspelt_names(
    old: str, new: str, words: str, pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(pipeline).write_text(PIPELINE.replace(old, new))
    error = _run(capsys, "pipeline", "validate", pipeline, code=2)["error"]
    assert isinstance(error, dict)
    assert words in error["message"]


def test_a_path_without_a_folder_is_an_input(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(pipeline).write_text(PIPELINE.replace("source: a,", "source: aa,"))
    Path("aa").mkdir()
    assert _run(capsys, "pipeline", "validate", pipeline)["valid"] is True


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["run", "sums.yaml", "--from", "bb"], "no stage 'bb'; did you mean 'b'?"),
        (["run", "sums.yaml", "--stop-after", "aa"], "no stage 'aa'; did you mean 'a'?"),
        (["run", "sums.yaml", "--stop-after", "aa", "--dry-run"], "no stage 'aa'; did you mean 'a'?"),
        (["run", "sums.yaml", "--from", "x", "--force"], "no stage 'x'"),
        (["run", "sums.yaml", "--set", "plsu=2"], "--set plsu: there is no such variable; did you mean 'plus'?"),
        (["run", "sums.yaml", "--set", "aa.plus=2"], "--set aa.plus: there is no stage 'aa'; did you mean 'a'?"),
        (["run", "sums.yaml", "--set", "a.plsu=2"], "stages.a.plsu: unknown key; did you mean 'plus'?"),
        (["pipeline", "validate", "sums.yaml", "--set", "plsu=2"], "did you mean 'plus'?"),
    ],
)
def test_typos_get_a_suggestion(
    line: list[str], words: str, pipeline: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _run(capsys, *line, code=2)["error"]
    assert isinstance(error, dict)
    assert words in error["message"]
    assert not Path("runs").exists()


def test_a_misspelt_pipeline_gets_a_suggestion(pipeline: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("show", "validate"):
        error = _run(capsys, "pipeline", command, "qiuckstart", code=3)["error"]
        assert isinstance(error, dict)
        assert "did you mean 'quickstart'?" in error["message"]


def test_list_names_what_ships(capsys: pytest.CaptureFixture[str]) -> None:
    found = _run(capsys, "pipeline", "list")["pipelines"]
    assert isinstance(found, list)
    assert "quickstart" in [entry["name"] for entry in found]


def test_set_values_are_yaml() -> None:
    assert parse_overrides(["a=1", "b.c=[x, y]", "d=", "e=a=b"]) == {"a": 1, "b.c": ["x", "y"], "d": None, "e": "a=b"}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_overrides(["nonsense"])
