from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_pipeline import tiny_pipeline
from tests.support.tiny_xl_pipeline import tiny_xl_pipeline


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny base")
    tiny_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny xl base")
    tiny_xl_pipeline(folder)
    return folder


@pytest.fixture(params=["one tower", "two towers"])
def base(request: pytest.FixtureRequest, tiny_base: Path, tiny_xl_base: Path) -> Path:
    """A saved tiny base model: Stable Diffusion 1 and SDXL in turn."""
    return tiny_base if request.param == "one tower" else tiny_xl_base


@pytest.fixture
def pipeline(base: Path) -> Any:
    """A fresh copy of that base model."""
    return loaded(base)


def loaded(folder: Path) -> Any:
    import torch

    from cdkit.deltas.base_model import load_base_model

    return load_base_model(str(folder), device=torch.device("cpu"))
