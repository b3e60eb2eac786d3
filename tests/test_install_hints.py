"""Nobody is told to install `cdkit` from PyPI, which is a stranger's library: our distribution has another name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from cdkit.core.errors import DISTRIBUTION, pip_install

ROOT = Path(__file__).parents[1]
# The command, then options and requirements up to what ends it; a line break or closing quote may stand anywhere.
INSTALL = r"""\b(?:uvx|(?:pip3?|pipx|uv|poetry|pdm|conda|mamba)[\s"'`]+(?:install|add|upgrade|download))[\s"'`]+"""
ARGUMENTS = r"""(?:[^\s&|;`"'()]+[\s"']+)*?"""
TAKEN_NAME = re.compile(INSTALL + ARGUMENTS + r"""["']*cdkit(?![\w.-]*[\w/-])|(?<![\w/.-])cdkit\[""")
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".j2", ".jinja", ".txt", ""}
PLACES = ("cdkit", "docs", "pipelines", "indexes", "tests/bench", ".ci")


def _texts() -> list[Path]:
    files = [*ROOT.iterdir(), *(path for place in PLACES for path in (ROOT / place).rglob("*"))]
    return [path for path in files if path.is_file() and path.suffix in TEXTS]


@pytest.mark.parametrize(
    "line",
    [
        "pip install cdkit",
        "pip install 'cdkit[ray]'",
        "hint=f\"pip install 'cdkit[{extra}]'\"",
        "pip install --upgrade cdkit",
        "pip3 install -U ray cdkit.",
        "Run `pip install\n    cdkit`.",
        '"pip install --quiet "\n "cdkit"',
        "python -m pip install cdkit==0.2",
        "uv add cdkit",
        "uvx cdkit --help",
        "pipx install cdkit",
        "needs the optional dependency cdkit[peft]",
    ],
)
def test_the_taken_name_is_seen(line: str) -> None:
    assert TAKEN_NAME.search(line)


@pytest.mark.parametrize(
    "line",
    [
        f"pip install '{DISTRIBUTION}[ray]'",
        pip_install(upgrade=True),
        "pip install -e . && cdkit run pipelines/quickstart.yaml",
        "pip install -e '.[test]'; cdkit doctor",
        "`pip install peft`, and cdkit exports again",
        'asked = cdkit["x"]'.replace('cdkit["', 'kit["'),
        "tests/cdkit[0]",
    ],
)
def test_other_lines_are_not(line: str) -> None:
    assert not TAKEN_NAME.search(line)


def test_no_text_of_ours_tells_anybody_to_install_it() -> None:
    texts = _texts()
    assert len(texts) > 100
    told = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in texts
        for match in TAKEN_NAME.finditer(path.read_text(encoding="utf-8", errors="ignore"))
    }
    assert told == set()


def test_hints_name_the_distribution_that_the_project_builds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == DISTRIBUTION
    assert project["scripts"] == {"cdkit": "cdkit.cli.app:main"}
    assert pip_install("ray") == f"pip install '{DISTRIBUTION}[ray]'"
    assert pip_install(upgrade=True) == f"pip install --upgrade {DISTRIBUTION}"


def test_doctor_knows_every_extra_and_its_distribution() -> None:
    from cdkit.cli.doctor import EXTRAS

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras)
    for extra, package in EXTRAS.items():
        assert any(re.match(rf"{package}\b", requirement) for requirement in extras[extra])


def test_a_folder_of_an_extras_name_is_not_that_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import PackageNotFoundError, version

    from cdkit.cli.doctor import _extras

    for name in ("datasets", "tensorboard"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    states = {check.name: check.state for check in _extras()}
    for name in ("datasets", "tensorboard"):
        try:
            expected = "ok" if version(name) else "note"
        except PackageNotFoundError:
            expected = "note"
        assert states[f"extra {name}"] == expected
