"""Base models' folders to change and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.tiny_pipeline import tiny_pipeline


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_pipeline(folder)
    shutil.rmtree(folder / "tokenizer-source")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(sound, tmp_path / "base")
    return tmp_path / "base"
