"""The house: imports point down and never in a circle, the table alone names stages, files stay readable."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cdkit"
# From the ground up: a room uses its own files and those of the rooms before it.
LAYERS = (
    *("core", "engines", "embedded", "encoders", "captions", "index", "pictures", "fetching", "tokens", "deltas"),
    *("sampling", "retrieval", "training", "merging", "evaluation", "report", "publishing"),
    *("stages", "inputs", "execute", "api", "serving", "pipeline", "drafting", "cli"),
)
HEAVY = {"torch", "faiss", "diffusers", "transformers", "open_clip", "duckdb", "pyarrow", "numpy"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in SOURCES}


def _imports(path: Path) -> set[str]:
    """The files of the package that a file imports anywhere, inside functions and for types too."""
    named = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            named |= {(f"{node.module}.{alias.name}", node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            named |= {(alias.name, alias.name) for alias in node.names}
    return {whole if whole in MODULES else module for whole, module in named if module in MODULES or whole in MODULES}


GRAPH = {module: _imports(path) - {"cdkit"} for module, path in MODULES.items()}


def _room(module: str) -> str:
    return module.split(".")[1]


def test_no_two_files_import_each_other() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"cdkit", "cdkit.__main__"}))
def test_imports_point_downwards(module: str) -> None:
    assert _room(module) in LAYERS, f"{_room(module)} has no place in the order of layers"
    level = LAYERS.index(_room(module))
    assert not {name for name in GRAPH[module] if LAYERS.index(_room(name)) > level}


def test_the_house_is_drawn_as_it_stands() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    # A line names a room and what it is for, or several rooms side by side.
    words = [[line.split()[0], *re.split(r"\s{2,}", line)[1:]] for line in drawing.split("\n") if line.strip()]
    assert [word for line in words for word in line if word in LAYERS] == list(reversed(LAYERS))
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} <= set(LAYERS)


@pytest.mark.parametrize("module", sorted(module for module in MODULES if module.split(".")[-1] == "config"))
def test_settings_need_only_tables_of_their_room(module: str) -> None:
    tables = {name for name in GRAPH[module] if _room(name) == _room(module) != "core"}
    assert not {name for table in tables for name in GRAPH[table] if _room(name) == _room(module)}


def test_nothing_imports_a_stage() -> None:
    stages = {name for names in GRAPH.values() for name in names if name.endswith(".stage")}
    assert not stages, "what others need of a stage belongs into a file of its own"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


def test_json_is_written_in_one_place() -> None:
    """What writes JSON by itself may write NaN, which no strict reader takes."""
    folders = [PACKAGE, ROOT / "tests" / "bench", ROOT / "tests" / "real"]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    writers = [path for path in sources if "json.dump" in path.read_text(encoding="utf-8")]
    assert writers == [PACKAGE / "core" / "formatting.py"]


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["index", "--help"], ["pipeline", "list"]])
def test_start_up_is_light(command: list[str]) -> None:
    code = (
        "import sys; from cdkit.cli.app import execute_command; execute_command(sys.argv[1:]);"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
