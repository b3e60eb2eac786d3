from __future__ import annotations

import importlib.util

import pytest

from cdkit.engines import create_engine
from cdkit.errors import InputError, MissingExtraError

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_the_extra_the_engine_is_an_error_that_names_it() -> None:
    with pytest.raises(MissingExtraError, match=r"cdkit\[ray\]"):
        create_engine("ray", None)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
def test_the_same_outcomes_as_local() -> None:
    from tests.engines.test_local import _square

    outcomes = list(create_engine("ray", 2).map(_square, [1, 2, 3, 4], label="squares"))
    assert [outcome.value for outcome in outcomes] == [1, 4, None, 16]
    assert isinstance(outcomes[2].error, InputError)
