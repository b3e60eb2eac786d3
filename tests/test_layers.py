"""The tree keeps its promises: imports point one way, start-up is light, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cdkit"
LAYERS = [
    (
        "cache_file",
        "columns",
        "credentials",
        "devices",
        "errors",
        "file_kinds",
        "json_text",
        "markdown",
        "storage",
        "system_errors",
        "threads",
        "config",
        "manifest",
        "datasets",
        "main_guard",
        "peak_memory",
        "protocols",
        "inputs",
        "shell",
        "text",
        "yaml_files",
    ),
    ("engines",),
    ("embedded",),
    ("pictures",),
    ("encoders",),
    ("captions",),
    ("index",),
    ("retrieval",),
    ("tokens",),
    ("weights",),
    ("sampling",),
    ("training",),
    ("merging",),
    ("evaluation",),
    ("publishing",),
    ("stages",),
    ("pipeline",),
    ("cli",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# An input named `embedded` is fingerprinted by asking the embedded model, lazily: the one upward reference.
ALLOWED = {("inputs", "embedded")}
HEAVY = {
    "torch",
    "faiss",
    "diffusers",
    "transformers",
    "open_clip",
    "duckdb",
    "pyarrow",
    "numpy",
    "PIL",
    "img2dataset",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def _layer(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cdkit"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {name.split(".")[1] for name in names if name.count(".")}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("cdkit.")}
    return {name for name in found if name in LEVEL}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = _layer(path)
    if layer in ("__init__", "__main__"):
        return
    assert layer in LEVEL, f"{layer} has no place in the order of layers"
    upward = {name for name in _imports(path) if LEVEL[name] > LEVEL[layer] and (layer, name) not in ALLOWED}
    assert not upward


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    assert path.stem not in {"utils", "util", "common", "helpers", "misc"}


@pytest.mark.parametrize("command", [["--help"], ["run", "--help"], ["index", "--help"], ["pipeline", "list"]])
def test_start_up_is_light(command: list[str]) -> None:
    code = (
        "import sys; from cdkit.cli.app import execute_command; execute_command(sys.argv[1:]);"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_json_is_written_in_one_place() -> None:
    """What writes JSON by itself may write NaN, which no strict reader takes."""
    root = PACKAGE.parent
    folders = [PACKAGE, root / "tests" / "bench", root / "tests" / "real"]
    sources = [path for folder in folders for path in folder.rglob("*.py") if path.name != "json_text.py"]
    assert len(sources) > 200
    writers = [str(path) for path in sources if "json.dump" in path.read_text(encoding="utf-8")]
    assert writers == []
