"""Every test runs offline, without a proxy, and with a cache of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# As many test processes run as there are cores: each takes one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["CDKIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        os.environ.pop(name, None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A fresh output folder path, not created yet."""
    return tmp_path / "out"


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the stage of tests.support.adding_stage a stage like any other."""
    from cdkit.stages import STAGES
    from tests.support.adding_stage import ADDING

    monkeypatch.setitem(STAGES, ADDING.name, ADDING)
