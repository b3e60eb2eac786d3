"""Small index folders, and CLIP's tokenizer in the layouts that models come in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import CLIPTokenizer

from cdkit.core.shards import part_name, schema, write_shard
from cdkit.core.text import caption_id, clean_caption
from cdkit.embedded.tokenizer import END_TOKEN, START_TOKEN, load_tokenizer, vocabulary
from cdkit.tokens.vocabulary import Tower, tower_of

IndexMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def clip_tokenizer() -> CLIPTokenizer:
    return load_tokenizer()


@pytest.fixture(scope="session")
def clip(clip_tokenizer: CLIPTokenizer) -> Tower:
    return tower_of("tokenizer", clip_tokenizer)


def write_index(folder: Path, captions: Mapping[str, int], shards: int = 1) -> Path:
    """An index folder whose captions (as written) stand for that many rows each."""
    items = sorted((caption_id(clean_caption(caption)), caption, rows) for caption, rows in captions.items())
    for shard in range(shards):
        mine = [item for item in items if item[0] % shards == shard]
        columns = [list(column) for column in zip(*mine, strict=True)] if mine else [[], [], []]
        table = pa.table(columns, schema=schema("captions"))
        write_shard(folder / "captions" / part_name(shard), table, fingerprint="test")
    return folder


@pytest.fixture
def index_of(tmp_path: Path) -> IndexMaker:
    def make(captions: Mapping[str, int], shards: int = 1, name: str = "index") -> Path:
        return write_index(tmp_path / name, captions, shards)

    return make


def write_classic_tokenizer(folder: Path, *, pad: str = END_TOKEN, merges: bool = True) -> Path:
    """vocab.json and merges.txt, as in the folders of Stable Diffusion; SDXL's second tower pads with `!`."""
    entries, pairs = vocabulary()
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    if merges:
        lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokens = {"bos_token": START_TOKEN, "eos_token": END_TOKEN, "unk_token": END_TOKEN, "pad_token": pad}
    config = {**tokens, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
