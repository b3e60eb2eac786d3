from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from cdkit.core.errors import InputError, MissingExtraError
from cdkit.engines import create_engine

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_the_extra_the_engine_is_an_error_that_names_it() -> None:
    with pytest.raises(MissingExtraError, match=r"custom-diffusion-kit\[ray\]"):
        create_engine("ray", None)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
def test_the_same_outcomes_as_local() -> None:
    from tests.engines.test_local import _square

    outcomes = list(create_engine("ray", 2).map(_square, [1, 2, 3, 4], label="squares"))
    assert [outcome.value for outcome in outcomes] == [1, 4, None, 16]
    assert isinstance(outcomes[2].error, InputError)


GPUS = """
import os, ray
ray.init(num_gpus=2, num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
from cdkit.engines import create_engine
engine = create_engine("ray", None)
assert engine.gpus == 2
def seen(number):
    return os.environ.get("CUDA_VISIBLE_DEVICES", "")
shown = [[o.unwrap() for o in engine.map(seen, [1, 2, 3], label="gpus", gpu=gpu)] for gpu in (True, False)]
assert all(len(names.split(",")) == 1 and names for names in shown[0]), shown
assert shown[1] == [""] * 3, shown
"""


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="the ray extra is not installed")
def test_a_task_that_asks_for_a_gpu_sees_one() -> None:
    # Ray counts GPUs by what it is told, so that this runs anywhere; a cluster of its own needs its own process.
    subprocess.run([sys.executable, "-c", GPUS], check=True)
