"""The stages as users run them: from an index, from pools, from kept counts; rerun, interrupted, and misused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.core.config import parse_config
from cdkit.core.errors import ConfigError, InputError
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME
from cdkit.core.protocols import Context
from cdkit.core.shards import Dataset, schema
from cdkit.core.storage import Folder
from cdkit.engines import create_engine
from cdkit.execute import execute
from cdkit.inputs import resolve_inputs
from cdkit.tokens import stage as caption_counts
from cdkit.tokens.config import RareTokensConfig, TokenCountsConfig
from cdkit.tokens.count import count_tokens, read_counts
from cdkit.tokens.modifiers import read_picks
from cdkit.tokens.stage import count_caption_tokens, pick_tokens
from cdkit.tokens.vocabulary import Tower
from tests.support.progress import Notes
from tests.tokens.conftest import IndexMaker, write_classic_tokenizer

CONTEXT = Context(create_engine("local", 1))
CAPTIONS = {"jodhpurs on a dog": 6, "a dog": 30, "mcenroe at play": 5, "the islay boat": 7, "a cat": 40, "!": 2}


def count(out: Path, **values: Any) -> Dataset:
    config = parse_config(TokenCountsConfig, values)
    return count_caption_tokens(config, resolve_inputs(config), Folder(out), CONTEXT)


def pick(out: Path, **values: Any) -> Dataset:
    config = parse_config(RareTokensConfig, values)
    return pick_tokens(config, resolve_inputs(config), Folder(out), CONTEXT)


def write_pool(path: Path, captions: dict[str, int]) -> Path:
    texts = [caption for caption, rows in captions.items() for _ in range(rows)]
    urls = [f"https://example.org/{number}.jpg" for number in range(len(texts))]
    pq.write_table(pa.table({"url": urls, "caption": texts}), path)
    return path


def test_counts_of_an_index(index_of: IndexMaker, out: Path, clip: Tower) -> None:
    made = count(out, index=str(index_of(CAPTIONS)))
    table = pq.read_table(out / "token_counts")
    assert table.schema.field("token_id").type == pa.int32()
    assert table.column_names[:3] == schema("token_counts").names
    counts = table.column("count").to_numpy()
    expected = count_tokens([text for text, rows in CAPTIONS.items() for _ in range(rows)], clip)
    np.testing.assert_array_equal(counts, expected)
    assert made.details["towers"] == [
        {"tokenizer": "tokenizer", "vocabulary": 49408, "tokens": int(expected.sum()), "distinct": 15}
    ]
    assert made.counts.as_json() == {"in": 90, "kept": 90, "rejected": {}}


@pytest.mark.parametrize(("sample", "said"), [(90, 0), (99, 0), (101, 1), (200_000, 1)])
def test_a_sample_of_far_fewer_rows_than_asked_for_is_said(
    index_of: IndexMaker, out: Path, sample: int, said: int
) -> None:
    notes = Notes()
    config = parse_config(TokenCountsConfig, {"index": str(index_of(CAPTIONS)), "sample": sample})
    context = Context(create_engine("local", 1), notes)
    count_caption_tokens(config, resolve_inputs(config), Folder(out), context)
    assert notes.notes == ["There are only 90 caption rows; all of them are counted."] * said


def test_the_sample_is_of_rows(index_of: IndexMaker, out: Path) -> None:
    made = count(out, index=str(index_of(CAPTIONS)), sample=50, seed=1)
    assert made.counts.as_json() == {"in": 90, "kept": 50, "rejected": {"not_sampled": 40}}


def test_pools_and_their_index_agree(index_of: IndexMaker, tmp_path: Path) -> None:
    written = {f" {text.title()}  &amp;": rows for text, rows in CAPTIONS.items()}
    pool = write_pool(tmp_path / "pool.parquet", written)
    from_pool = pick(tmp_path / "a", captions=[str(pool)], sample=60, min_count=2)
    from_index = pick(tmp_path / "b", index=str(index_of(written)), sample=60, min_count=2)
    assert from_pool.details["rejected"]["a_word_of_these_captions"] > 0
    assert from_pool.details == from_index.details
    assert (tmp_path / "a" / "picks.json").read_bytes() == (tmp_path / "b" / "picks.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["picks.json", "token_counts"]


def test_picks_for_train(index_of: IndexMaker, out: Path) -> None:
    made = pick(out, index=str(index_of(CAPTIONS)))
    assert [found.token for found in read_picks(out)] == ["jodh", "mcen"]
    assert [(entry["token"], entry["token_id"], entry["count"]) for entry in made.details["picks"]] == [
        ("jodh", 48689, 6),
        ("mcen", 47423, 5),
    ]
    assert made.shortfall == ""
    assert made.counts.read == 49408
    assert set(json.loads((out / "picks.json").read_text())) == {"format", "tokenizer", "picks", "rejected", "rows"}


def test_from_kept_counts_and_twice_the_same(index_of: IndexMaker, out: Path, tmp_path: Path) -> None:
    index = str(index_of(CAPTIONS))
    count(out, index=index)
    first, second = pick(tmp_path / "a", index=index), pick(tmp_path / "b", counts=str(out))
    assert first.details == second.details
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["picks.json"]


def test_counts_that_a_killed_run_left_are_not_made_again(
    index_of: IndexMaker, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"index": str(index_of(CAPTIONS)), "max_words": 7, "max_count": 7}
    execute("tokens", parse_config(RareTokensConfig, values), out)
    (out / MANIFEST_NAME).rename(out / STARTED_NAME)
    monkeypatch.delattr(caption_counts, "count_tokens")
    assert execute("tokens", parse_config(RareTokensConfig, values), out).state == "done"
    assert [found.token for found in read_picks(out)] == ["islay</w>", "jodh", "mcen"]
    with pytest.raises(NameError):
        pick(out, **values, seed=1)


def test_none_qualifies(index_of: IndexMaker, out: Path) -> None:
    made = pick(out, index=str(index_of({"mcenroe": 12, "jodhpurs": 3})))
    assert read_picks(out) == []
    assert "No token that occurs 5 to 10 times over 15 caption rows" in made.shortfall
    assert "jodh (3 times), mcen (12 times)" in made.shortfall
    assert made.counts.kept == 0


def test_both_towers_of_sdxl(index_of: IndexMaker, out: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_classic_tokenizer(model / "tokenizer")
    write_classic_tokenizer(model / "tokenizer_2", pad="!")
    made = count(out, index=str(index_of(CAPTIONS)), tokenizer=str(model))
    assert [tower["tokenizer"] for tower in made.details["towers"]] == ["tokenizer", "tokenizer_2"]
    first, second = (
        pq.read_table(out / name).column("count").to_pylist() for name in ("token_counts", "token_counts_2")
    )
    assert (first[256], first[0]) == (2, 0)
    assert (second[256], second[0]) == (0, 2)
    picked = pick(tmp_path / "picks", counts=str(out), tokenizer=str(model))
    assert [entry["token"] for entry in picked.details["picks"]] == ["jodh", "mcen"]
    with pytest.raises(InputError, match="no counts for tokenizer_2"):
        (out / "token_counts_2" / "part-00000.parquet").unlink()
        pick(tmp_path / "again", counts=str(out), tokenizer=str(model))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "give one of captions"),
        ({"index": "a", "counts": "b"}, "give one of captions"),
        ({"index": "a", "min_count": 11}, "min_count 11 is above max_count 10"),
        ({"index": "a", "sample": 0}, "greater than or equal to 1"),
        ({"index": "a", "purpose": "anything"}, "'initializer' or 'prompt'"),
        ({"index": "a", "mincount": 3}, "did you mean 'min_count'"),
    ],
)
def test_wrong_settings(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_config(RareTokensConfig, values)


def test_counting_takes_one_source() -> None:
    with pytest.raises(ConfigError, match="either captions"):
        parse_config(TokenCountsConfig, {"index": "a", "captions": ["b"]})


def test_an_empty_index(index_of: IndexMaker, out: Path) -> None:
    with pytest.raises(InputError, match="no caption rows"):
        pick(out, index=str(index_of({})))


def test_damaged_or_foreign_counts(index_of: IndexMaker, out: Path, clip: Tower) -> None:
    count(out, index=str(index_of(CAPTIONS)))
    part = out / "token_counts" / "part-00000.parquet"
    table = pq.read_table(part)
    assert read_counts(out, [clip]).sampled == 90
    pq.write_table(table.slice(0, 100), part)
    with pytest.raises(InputError, match="another tokenizer"):
        read_counts(out, [clip])
    pq.write_table(table.drop_columns(["count"]), part)
    with pytest.raises(InputError, match="not a table of token counts"):
        read_counts(out, [clip])
    part.write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged"):
        read_counts(out, [clip])
