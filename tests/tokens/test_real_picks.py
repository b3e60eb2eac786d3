"""Picks over real captions, confirmed by counting every sampled row slowly and reading the rule slowly."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import CLIPTokenizer

from cdkit.core.config import parse_config
from cdkit.core.protocols import Context
from cdkit.core.storage import Folder
from cdkit.core.text import clean_caption
from cdkit.engines import create_engine
from cdkit.inputs import resolve_inputs
from cdkit.tokens.config import RareTokensConfig
from cdkit.tokens.modifiers import Pick, read_picks
from cdkit.tokens.sample import sample_rows
from cdkit.tokens.stage import pick_tokens
from tests.support import material
from tests.tokens.conftest import write_index

pytestmark = pytest.mark.real
CONTEXT = Context(create_engine("local", 1))
COMMON_WORDS = 20_000


def rows_of(paths: Iterable[Path]) -> Counter[str]:
    """Cleaned captions and how many rows each has."""
    written: Counter[str] = Counter()
    for path in paths:
        written.update(text for text in pq.read_table(path, columns=["TEXT"])["TEXT"].to_pylist() if text)
    cleaned: Counter[str] = Counter()
    for text, number in written.items():
        cleaned[clean_caption(text)] += number
    del cleaned[""]
    return cleaned


def pick(out: Path, **values: Any) -> list[Pick]:
    config = parse_config(RareTokensConfig, values)
    pick_tokens(config, resolve_inputs(config), Folder(out), CONTEXT)
    return read_picks(out)


def confirm(picks: list[Pick], index: Path, sample: int, tokenizer: CLIPTokenizer) -> None:
    """Every pick meets the rule by counts of tokenising every sampled caption; nothing ranked above was left out."""
    drawn = sample_rows(index / "captions", sample, 0, CONTEXT)
    counts: Counter[int] = Counter()
    words: Counter[str] = Counter()
    for text, rows in zip(drawn.captions.to_pylist(), drawn.rows.tolist(), strict=True):
        for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
            counts[token] += rows
        for word in re.findall(r"[^\W\d_]+", text):
            words[word] += rows
    surfaces = {index: entry.removesuffix("</w>") for entry, index in tokenizer.get_vocab().items()}
    expected: dict[str, int] = {}
    for index_, number in sorted(counts.items(), reverse=True):
        surface = surfaces[index_]
        if not (5 <= number <= 10 and re.fullmatch("[a-z]+", surface)) or words[surface] or surface in expected:
            continue
        if not any(surface in other and other != surface for other in surfaces.values()):
            expected[surface] = index_
    assert [found.token_id for found in picks] == list(expected.values())[: len(picks)]
    assert [found.count for found in picks] == [counts[found.token_id] for found in picks]


def test_picks_of_real_web_captions(tmp_path: Path, clip_tokenizer: CLIPTokenizer) -> None:
    names = ("cc3m_validation", "laion_img2dataset_10k", "tate_artworks")
    rows = rows_of(material.path(f"captions/{name}.parquet") for name in names)
    index = write_index(tmp_path / "index", rows, shards=2)
    picks = pick(tmp_path / "a", index=str(index), sample=12_000, limit=10)
    assert len(picks) == 10
    assert pick(tmp_path / "b", index=str(index), sample=12_000, limit=10) == picks
    confirm(picks, index, 12_000, clip_tokenizer)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_picks_over_200_000_rows(tmp_path: Path, clip_tokenizer: CLIPTokenizer) -> None:
    english = rows_of(path for path in material.caption_files() if "fr_cs" not in path.name)
    index = write_index(tmp_path / "index", english, shards=4)
    picks = pick(tmp_path / "a", index=str(index))
    assert len(picks) == 20
    assert pick(tmp_path / "b", index=str(index)) == picks
    confirm(picks, index, 200_000, clip_tokenizer)
    words: Counter[str] = Counter()
    for text, number in (english + rows_of([material.path("captions/multi30k_fr_cs.parquet")])).items():
        for word in re.findall(r"[^\W\d_]+", text):
            words[word] += number
    common = {word for word, _ in words.most_common(COMMON_WORDS)}
    assert not common & {found.surface for found in picks}
