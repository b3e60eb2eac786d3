"""Where the real test material lies; tests that need it skip with a reason where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("CDKIT_TEST_MATERIAL", Path(__file__).parents[3] / "shared" / "data"))


def path(name: str) -> Path:
    """A file or folder of the test material by its relative name; skips the test when it is not there."""
    found = ROOT / name
    if not found.exists():
        pytest.skip(f"real test material is absent: {found} (set CDKIT_TEST_MATERIAL to its folder)")
    return found


def caption_files() -> list[Path]:
    """All real caption tables, sorted by name."""
    return sorted(path("captions").glob("*.parquet"))
