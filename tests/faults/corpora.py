"""Collections of bad input that others have gathered, from source packages on PyPI; none of it is kept in the project.

    python -m tests.faults.corpora      fetches all of them into $CDKIT_TEST_MATERIAL, else a temporary folder

The short tests read what is there and are skipped where it is not; the long ones (`-m slow`) fetch it.
"""

from __future__ import annotations

import ast
import ipaddress
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

GUARDS = ("advocate", "drawbridge", "microsoft-antissrf", "httpx-secure")
PACKAGES = ("pillow", "picklescan", *GUARDS)
PICKLESCAN = "https://github.com/mmaitre314/picklescan"
PATIENCE = 300
_URL = re.compile(r"(?:https?|ftps?|gopher|dict|file|ldap|sftp|tftp|jar|netdoc)://[^\s\"'`<>\\)\]}]+", re.IGNORECASE)
_NUMBERS = re.compile(r"[\"'](\[?[0-9a-fA-FxX.:%]{2,45}\]?)[\"']")
_NETWORKS = re.compile(r"[\"'`]([0-9a-fA-F.:]{2,45}(?:/\d{1,3})?)[\"'`]")


def material_folder() -> Path:
    chosen = os.environ.get("CDKIT_TEST_MATERIAL")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"cdkit-test-material-{os.getuid()}"


def sdist(name: str, *, fetch: bool) -> Path:
    """The folder of a source package. Skips the test when it is not there and cannot, or should not, be fetched."""
    folder = material_folder() / name
    if not folder.is_dir():
        if not fetch:
            pytest.skip(f"{name}'s source package is not there: python -m tests.faults.corpora")
        with tempfile.TemporaryDirectory() as scratch:
            _download(name, Path(scratch))
            folder.parent.mkdir(parents=True, exist_ok=True)
            [archive] = Path(scratch).glob("*.tar.gz")
            with tarfile.open(archive) as content:
                content.extractall(Path(scratch) / "content", filter="data")
            [inside] = (Path(scratch) / "content").iterdir()
            subprocess.run(["cp", "-r", str(inside), str(folder)], check=True)
    return folder


def _download(name: str, folder: Path) -> None:
    """Through pip, as everybody fetches packages."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        name,
        "-d",
        str(folder),
        name,
    ]
    _run(command, f"{name}'s source package")


def _run(command: list[str], what: str) -> None:
    """Fetch something; skips the test when that fails."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{what} cannot be fetched: {error}")
    if done.returncode:
        pytest.skip(f"{what} cannot be fetched: {done.stderr.strip()[-200:]}")


def addresses(folder: Path) -> list[str]:
    """Every URL and every spelling of an address that a package's code, tests and words hold, as URLs."""
    urls: set[str] = set()
    for text in _texts(folder):
        urls |= {url.rstrip(".,;") for url in _URL.findall(text)}
        urls |= {f"http://{number}/" for number in _NUMBERS.findall(text)}
        urls |= {f"http://[{number.strip('[]')}]/" for number in _NUMBERS.findall(text) if ":" in number}
    return sorted(urls)


def places(folder: Path) -> list[str]:
    """Every address that a package holds, and the first and last of every network: what a name may turn out to be."""
    found: set[str] = set()
    for text in _texts(folder):
        for quoted in _NETWORKS.findall(text):
            with suppress(ValueError):
                network = ipaddress.ip_network(quoted, strict=False)
                found |= {str(network[0]), str(network[-1])}
    return sorted(found)


def _texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".json", ".md", ".txt", ".rst", "") and path.is_file():
            yield path.read_text(encoding="utf-8", errors="replace")


def dangerous_names(folder: Path) -> list[tuple[str, str]]:
    """Functions that hostile pickles call, as picklescan lists them: module and name; one name of a whole module."""
    tree = ast.parse((folder / "src" / "picklescan" / "scanner.py").read_text(encoding="utf-8"))
    tables = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_unsafe_globals"
    ]
    names: list[tuple[str, str]] = []
    for module, content in ast.literal_eval(tables[0]).items():
        names += [(module, name) for name in sorted(content)] if content != "*" else [(module, "run")]
    return [*names, *_named_in_tests(folder)]


def _named_in_tests(folder: Path) -> Iterator[tuple[str, str]]:
    tests = (folder / "tests" / "test_scanner.py").read_text(encoding="utf-8")
    yield from sorted(set(re.findall(r"Global\(\s*\"([^\"]+)\",\s*\"([^\"]+)\",\s*SafetyLevel\.Dangerous", tests)))


def hostile_files(*, fetch: bool) -> list[Path]:
    """The files of picklescan's tests. Its source package leaves them out, so that they come from its repository."""
    folder = material_folder() / "picklescan-repository"
    if not folder.is_dir():
        if not fetch:
            pytest.skip("picklescan's repository is not there: python -m tests.faults.corpora")
        _run(["git", "clone", "-q", "--depth", "1", PICKLESCAN, str(folder)], "picklescan's repository")
    return sorted(path for name in ("data", "data2") for path in (folder / "tests" / name).iterdir())


if __name__ == "__main__":
    for package in PACKAGES:
        print(sdist(package, fetch=True))
    print(len(hostile_files(fetch=True)), "files of picklescan's tests")
