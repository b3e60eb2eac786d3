"""What several tests of this folder go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.faults.matrix import Matrix, load_once
from tests.faults.scenarios import Material


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """All commands on material made once; nothing in it waits for a disk."""
    from cdkit import encoders

    kept = os.fsync, encoders.load_text_encoder
    load_once()
    folder = tmp_path_factory.mktemp("matrix")
    material = Material(folder / "material")
    material.make()
    yield Matrix(material, folder / "tries")
    os.fsync, encoders.load_text_encoder = kept
