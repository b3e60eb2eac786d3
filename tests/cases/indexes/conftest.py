"""Indexes to damage, whole and compressed, and what is done with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdkit.core.manifest import MANIFEST_NAME
from cdkit.index.changes.compact import compact
from cdkit.index.changes.remove import remove
from cdkit.index.layout import IndexSettings
from cdkit.index.search import search
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_index import grammar_captions, make_index

CAPTIONS = grammar_captions(400)
# The fewest that are worth compressing.
MANY = grammar_captions(10_100)
KINDS = {
    "exact": IndexSettings(),
    "compressed": IndexSettings(bytes_per_caption=4, exact_below=0, keep_embeddings=True),
}


@pytest.fixture(scope="session")
def encoder() -> HashingEncoder:
    return HashingEncoder(32)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: HashingEncoder) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    return {
        kind: make_index(root / kind, MANY if kind == "compressed" else CAPTIONS, encoder, settings)
        for kind, settings in KINDS.items()
    }


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    kind = getattr(request, "param", "exact")
    shutil.copytree(made[kind], tmp_path / "index")
    return tmp_path / "index"


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    change(manifest)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def uses(folder: Path, encoder: HashingEncoder) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "search", lambda: search(folder, [CAPTIONS[0]], min_similarity=0.5, encoder=encoder)
    yield "remove", lambda: remove(folder, captions=[CAPTIONS[1]])
    yield "compact", lambda: compact(folder)
