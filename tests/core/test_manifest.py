from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdkit.core.errors import InputError
from cdkit.core.manifest import MANIFEST_NAME, Counts, Identity, Manifest, differences, read_manifest, run_record

KEYS = st.text("abc", min_size=1, max_size=2)


@given(st.dictionaries(KEYS, st.integers(0, 3), max_size=4), st.dictionaries(KEYS, st.text("xy", max_size=2)))
def test_the_fingerprint_follows_every_value_not_the_order(config: dict[str, int], inputs: dict[str, str]) -> None:
    identity = Identity("s", 1, config, inputs)
    turned = Identity("s", 1, dict(reversed(config.items())), dict(reversed(inputs.items())))
    assert identity.fingerprint == turned.fingerprint
    assert identity.fingerprint != Identity("s", 2, config, inputs).fingerprint
    for key in config:
        assert identity.fingerprint != Identity("s", 1, {**config, key: -1}, inputs).fingerprint
    for key in inputs:
        assert identity.fingerprint != Identity("s", 1, config, {**inputs, key: "other"}).fingerprint


def test_differences_name_what_changed() -> None:
    old = Identity("s", 1, {"encoder": "a", "seed": 0}, {"captions": "x"})
    new = Identity("s", 2, {"encoder": "b", "seed": 0}, {"captions": "y"})
    assert differences(old, new) == ["stage version 1 → 2", 'encoder: "a" → "b"', "input captions changed"]


def test_rows_must_add_up() -> None:
    Counts(3, 1, {"empty": 2})
    with pytest.raises(AssertionError, match="do not add up"):
        Counts(3, 1, {"empty": 1})


def test_a_manifest_survives_the_disk(tmp_path: Path) -> None:
    manifest = Manifest("s", 1, "f", {"a": 1}, {"b": "c"}, counts={"in": 1}, details={"é": [1]})
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert read_manifest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a cdkit manifest"),
        (json.dumps({"fingerprint": "f", "stage": "s"}), "damaged"),
        (json.dumps({"fingerprint": "f", "stage": "s", "format": 99}), "newer cdkit"),
    ],
)
def test_damaged_and_newer_manifests_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path)


def test_a_run_is_recorded_with_the_versions_of_its_libraries() -> None:
    import torch

    record = run_record(datetime.now(UTC), 1.5)
    assert record["seconds"] == 1.5
    # torch itself may append the build, as in 2.15.0+cpu.
    assert torch.__version__.startswith(record["versions"]["torch"].partition("+")[0])
    assert {"diffusers", "transformers", "numpy"} <= set(record["versions"])
