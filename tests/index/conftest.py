"""Indexes that several tests read; none of them changes one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdkit.index.layout import IndexSettings
from tests.support.hashing_encoder import HashingEncoder
from tests.support.small_index import grammar_captions, make_index

COMPRESSED = IndexSettings(bytes_per_caption=4, exact_below=0, keep_embeddings=True)


@pytest.fixture(scope="session")
def encoder() -> HashingEncoder:
    return HashingEncoder(32)


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return grammar_captions(10_100)


@pytest.fixture(scope="session")
def exact_folder(tmp_path_factory: pytest.TempPathFactory, encoder: HashingEncoder, captions: list[str]) -> Path:
    return make_index(tmp_path_factory.mktemp("exact"), captions[:1000], encoder)


@pytest.fixture(scope="session")
def compressed_folder(tmp_path_factory: pytest.TempPathFactory, encoder: HashingEncoder, captions: list[str]) -> Path:
    return make_index(tmp_path_factory.mktemp("compressed"), captions, encoder, COMPRESSED)
