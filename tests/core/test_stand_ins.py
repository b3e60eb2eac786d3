"""Stand-ins become the modules they stand for when they are used, and nobody can tell before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cdkit.core.stand_ins import stand_ins

MODULE = "late_module_of_a_test"
SOURCE = """
class Made:
    kind = "real"
    def __init__(self, number): self.number = number
def double(number): return 2 * number
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / MODULE).mkdir()
    (tmp_path / MODULE / "__init__.py").write_text(SOURCE)
    (tmp_path / MODULE / "inner.py").write_text("class Inner: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in (MODULE, f"{MODULE}.inner"):
        sys.modules.pop(name, None)


def test_what_is_imported_meanwhile_works_afterwards() -> None:
    with stand_ins([MODULE]):
        module = importlib.import_module(MODULE)
        inner = importlib.import_module(f"{MODULE}.inner").Inner
        made, double = module.Made, module.double
    assert MODULE not in sys.modules
    assert not isinstance(3, made)
    assert not issubclass(int, made)
    assert MODULE not in sys.modules, "asking what something is loads nothing"
    assert double(4) == 8
    real = sys.modules[MODULE].Made
    assert made.kind == "real"
    assert isinstance(real(1), made)
    assert issubclass(real, made)
    assert made(2).number == 2
    assert module.Made is real
    assert "double" in dir(module)
    assert type(inner()).__module__ == f"{MODULE}.inner"


def test_a_use_meanwhile_gives_the_real_module() -> None:
    with stand_ins([MODULE]):
        made = importlib.import_module(MODULE).Made
        assert made(5).number == 5
        assert sys.modules[MODULE].Made.kind == "real"


def test_nothing_is_made_of_a_stand_in() -> None:
    with stand_ins([MODULE]):
        made = importlib.import_module(MODULE).Made
    with pytest.raises(TypeError, match="no subclasses"):
        type("Sub", (made,), {})


def test_a_loaded_module_stays() -> None:
    loaded = importlib.import_module(MODULE)
    with stand_ins([MODULE]):
        assert importlib.import_module(MODULE) is loaded
