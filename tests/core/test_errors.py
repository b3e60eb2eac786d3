from __future__ import annotations

import pickle

import pytest

from cdkit.core import errors

CODES = {
    errors.CdkitError: 1,
    errors.ConfigError: 2,
    errors.InputError: 3,
    errors.PartialError: 5,
    errors.NetworkError: 6,
    errors.OutputError: 7,
}


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_exit_codes_are_the_documented_ones(kind: type[errors.CdkitError], code: int) -> None:
    assert kind("what").exit_code == code


def test_an_error_keeps_its_hint_across_processes() -> None:
    error = errors.ConfigError("two mistakes", problems=["a: b", "c: d"], hint="mend them")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.message, copy.hint, copy.problems) == (
        errors.ConfigError,
        error.message,
        "mend them",
        ["a: b", "c: d"],
    )
    assert "  - c: d" in str(copy)


def test_a_missing_extra_names_what_to_install() -> None:
    error = pickle.loads(pickle.dumps(errors.MissingExtraError("The engine 'ray'", extra="ray")))
    assert error.exit_code == 4
    assert "custom-diffusion-kit[ray]" in error.message
    assert error.hint == "pip install 'custom-diffusion-kit[ray]'"
