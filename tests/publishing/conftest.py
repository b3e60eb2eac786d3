"""A hub on loopback that huggingface_hub of this process talks to, with a cache of its own and a token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub, hub_of_this_process


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with hub_of_this_process(monkeypatch, tmp_path / "hub-cache") as running:
        yield running
