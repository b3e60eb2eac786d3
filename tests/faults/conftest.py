"""What several tests of this folder go on from."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cdkit.core.storage import waiting_for
from tests.faults.matrix import Matrix, quickened
from tests.faults.scenarios import Material


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """All commands on material made once; nothing in it waits for a disk."""
    own = tmp_path_factory.getbasetemp()
    # One for all processes of a test run.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    material, mark = Material(shared / "faults-material"), shared / "faults-material-made"
    with quickened():
        with waiting_for(shared):
            if not mark.exists():
                material.make()
                mark.touch()
        yield Matrix(material, tmp_path_factory.mktemp("tries"))
