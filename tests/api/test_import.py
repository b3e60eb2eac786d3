"""`import cdkit` loads no library of the work; what a function needs comes when it is called."""

from __future__ import annotations

import json
import subprocess
import sys

import cdkit
from tests.test_architecture import HEAVY

LIGHT = "import json, sys, cdkit; print(json.dumps(sorted(sys.modules)))"


def _loaded(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_import_is_light() -> None:
    loaded = _loaded(LIGHT)
    assert not loaded & (HEAVY | {"pydantic", "PIL", "rich"})
    assert not any(name.startswith("cdkit.api") for name in loaded)


def test_a_function_loads_no_library_before_it_is_called() -> None:
    assert not _loaded(LIGHT.replace("cdkit;", "cdkit; cdkit.train, cdkit.sample;", 1)) & HEAVY


def test_every_name_is_there_and_shown() -> None:
    assert set(cdkit.__all__) <= set(dir(cdkit))
    for name in cdkit.__all__:
        assert getattr(cdkit, name).__name__ == name
        assert getattr(cdkit, name).__doc__
