"""The notebooks do what they say: their cells run in order, in one process, and what they show can be shown."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


def _cells(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == kind:
            yield cell


def _shown(source: str, scope: dict[str, Any]) -> Any:
    """What a cell ends with, its value if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), scope)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), scope)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_cells_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "notebook"}
    for cell in _cells(path, "code"):
        value = _shown("".join(cell["source"]), scope)
        if value is not None:
            assert repr(value)
            if hasattr(value, "_repr_html_"):
                assert value._repr_html_().startswith("<")
    if path.stem == "find-a-set":
        assert len(scope["stars"]) == 12
        assert scope["again"].state == "cached"
    else:
        assert scope["both"].tokens == ["<new1>", "<new2>"]
        assert len(scope["samples"]) == 4
        assert any(event.total == 60 for event in scope["losses"])


def test_the_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["find-a-set", "teach-two-concepts"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_output_is_stored(path: Path) -> None:
    assert not [cell for cell in _cells(path, "code") if cell["outputs"] or cell["execution_count"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_pages_lead_to_it_and_it_leads_somewhere(path: Path) -> None:
    for page in ("index.md", "python.md"):
        assert f"]({path.name})" in (DOCS / page).read_text(encoding="utf-8")
    text = "".join("".join(cell["source"]) for cell in _cells(path, "markdown"))
    targets = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert targets
    assert all((DOCS / target).exists() for target in targets)
