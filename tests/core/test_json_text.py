"""JSON as cdkit writes it: strict, whatever the numbers and the names are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.formatting import json_text
from cdkit.core.storage import read_json, write_json


def strict(text: str) -> Any:
    """Read JSON as a reader does that knows no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text.encode("utf-8"), parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (
            {"a": [1.5, float("inf")], "b": (float("-inf"), {"c": float("nan")})},
            {"a": [1.5, None], "b": [None, {"c": None}]},
        ),
        ({float("nan"): 1, 2.5: float("nan")}, {"null": 1, "2.5": None}),
        ([True, None, 3, 1e300, "NaN"], [True, None, 3, 1e300, "NaN"]),
    ],
)
def test_numbers_that_are_none_are_null(value: Any, expected: Any) -> None:
    assert strict(json_text(value)) == expected
    assert strict(json_text(value, indent=2, ascii_only=True)) == expected


def test_names_that_are_no_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.csv")
    text = json_text({"file": name, "note": "sch\u00f6n"})
    assert strict(text)["file"] == name
    write_json(tmp_path / "a.json", {"file": name, "score": float("nan")})
    assert read_json(tmp_path / "a.json") == {"file": name, "score": None}


def test_text_is_written_as_it_is_and_the_rest_as_ever() -> None:
    value = {"b": "sch\u00f6n", "a": [1, 2.5]}
    assert json_text(value) == '{"b": "sch\u00f6n", "a": [1, 2.5]}'
    assert json_text(value, sort_keys=True, ascii_only=True) == json.dumps(value, sort_keys=True)
    assert json_text(value, compact=True) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    assert json_text({"a": {1}}, default=sorted) == '{"a": [1]}'
    with pytest.raises(TypeError):
        json_text({"a": {1}})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_any_value_is_strict_json(value: Any) -> None:
    strict(json_text(value))
