from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.pipeline import spec
from tests.core.test_config import JSON

pytestmark = pytest.mark.usefixtures("adding")

TWO = """
name: two
vars: {amount: 4, base: "${amount}"}
stages:
  second: {run: adding, source: first, numbers: []}
  first:  {run: adding, plus: "${base}"}
"""


def _load(tmp_path: Path, text: str, **overrides: Any) -> spec.Pipeline:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return spec.load(path, {key.replace("__", "."): value for key, value in overrides.items()}, tmp_path / "run")


def test_steps_are_ordered_linked_and_interpolated(tmp_path: Path) -> None:
    pipeline = _load(tmp_path, TWO)
    assert [step.name for step in pipeline.steps] == ["first", "second"]
    first, second = (step.config.model_dump() for step in pipeline.steps)
    assert first["plus"] == 4
    assert second["source"] == str(tmp_path / "run" / "first")
    assert pipeline.descendants("first") == {"first", "second"}
    assert pipeline.descendants("second") == {"second"}


def test_set_changes_variables_and_settings_of_one_stage(tmp_path: Path) -> None:
    pipeline = _load(tmp_path, TWO, amount=7, second__plus=9)
    # Variables that refer to one that is set follow it.
    assert [step.config.model_dump()["plus"] for step in pipeline.steps] == [7, 9]
    with pytest.raises(ConfigError, match=r"--set amuont: there is no such variable; did you mean 'amount'\?"):
        _load(tmp_path, TWO, amuont=1)


def test_every_mistake_is_listed_at_once(tmp_path: Path) -> None:
    text = """
name: two words
varz: {}
stages:
  a: {run: ading}
  b: {run: adding, plsu: 2, plus: -1}
  c: {run: adding, source: d}
  d: {run: adding, source: c}
  e: {run: adding, label: "${nope}"}
  f: [1]
"""
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    text = str(caught.value)
    for expected in (
        "varz: unknown key; did you mean 'vars'?",
        "name: must be letters",
        "stages.a.run: unknown stage 'ading'; did you mean 'adding'?",
        "stages.b.plsu: unknown key; did you mean 'plus'?",
        "stages.b.plus: input should be greater",
        "needs itself: c → d → c",
        "unknown variable ${nope}",
        "stages.f: must be a mapping",
    ):
        assert expected in text


@pytest.mark.parametrize("text", ["", "[]", "stages: {}", "a: [", "\x00", "stages: {a: {run: [x]}}", "&a [*a]"])
def test_nonsense_is_a_config_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        _load(tmp_path, text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.one_of(JSON, st.fixed_dictionaries({"stages": st.dictionaries(st.text(max_size=4), JSON, max_size=3)}))
)
def test_any_yaml_document_loads_or_is_a_cdkit_error(document: Any, tmp_path: Path) -> None:
    try:
        _load(tmp_path, yaml.safe_dump(document))
    except CdkitError as error:
        assert error.exit_code in (2, 3)


def test_an_unknown_name_lists_or_suggests_what_ships() -> None:
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        spec.find("quikstart")


@pytest.mark.parametrize("name", ["quickstart", "pipelines/quickstart.yaml"])
def test_shipped_pipelines_are_found_by_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert spec.find(name).name == "quickstart.yaml"
