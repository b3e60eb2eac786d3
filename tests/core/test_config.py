from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.config import canonical, field_settings, parse_config
from cdkit.core.errors import ConfigError
from tests.support.adding_stage import AddingConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def test_all_mistakes_are_listed_at_once_with_suggestions() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(AddingConfig, {"plsu": 1, "plus": -1, "numbers": "many"}, where="stages.a")
    text = str(caught.value)
    assert "stages.a.plsu: unknown key; did you mean 'plus'?" in text
    assert "stages.a.plus: input should be greater than or equal to 0 (got -1)" in text
    assert "stages.a.numbers:" in text
    assert len(caught.value.problems) == 3


def test_execution_settings_and_inputs_stay_out_of_the_canonical_config() -> None:
    config = AddingConfig(numbers=[5], plus=2, label="x", source="folder", workers=7, engine="ray")
    assert canonical(config) == {"numbers": [5], "plus": 2, "wanted": 0}
    assert field_settings(AddingConfig)["source"].input == "folder"
    assert field_settings(AddingConfig)["workers"].execution


@given(st.dictionaries(st.sampled_from(["numbers", "plus", "label", "source", "x", ""]) | st.text(max_size=6), JSON))
def test_any_mapping_is_either_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = parse_config(AddingConfig, values)
    except ConfigError as error:
        assert error.problems
    else:
        assert parse_config(AddingConfig, config.model_dump()) == config


def test_mistakes_are_in_words_for_people() -> None:
    from cdkit.merging.config import MergeConfig

    with pytest.raises(ConfigError) as few:
        parse_config(MergeConfig, {"deltas": ["one"], "captions": ["x"]})
    assert few.value.problems == ["deltas: give at least 2, not 1"]
    # A rule over several settings names them, and does not print them all.
    for where, start in (("", ""), ("stages.a", "stages.a: ")):
        with pytest.raises(ConfigError) as none:
            parse_config(MergeConfig, {"deltas": ["one", "two"]}, where=where)
        assert none.value.problems == [f"{start}give either captions (pool files) or index (an index folder)"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "-inf"])
def test_a_setting_that_is_no_number_is_a_mistake(value: Any) -> None:
    from cdkit.captions.config import ImportConfig

    with pytest.raises(ConfigError, match=r"max_aspect_ratio: .*finite"):
        parse_config(ImportConfig, {"captions": ["x"], "max_aspect_ratio": value})
