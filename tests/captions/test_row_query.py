"""What SQL takes for plain captions is cleaned and hashed as Python does."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdkit.captions.config import ImportConfig
from cdkit.captions.digests import digests_of
from cdkit.captions.reading import inspect
from cdkit.captions.row_query import rows_sql
from cdkit.core.storage import SourceFile
from cdkit.core.text import clean_caption, digest_halves

CHARACTERS = st.sampled_from([*"    aabZ0&;#'\"<é“", "\t", "\n", "\x1b", "\x7f", "amp", "&amp;", "[0m"])
TRICKY = ["A  dog", " A dog", "A dog ", "a & b", "a &b", "a &amp; b", "a && &", "\ta", "a\nB", "A\x7f", "\x1b[0ma"]
CAPTIONS = st.lists(st.lists(CHARACTERS, max_size=10).map("".join), min_size=1, max_size=60)


@pytest.fixture(scope="module")
def connection() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(config={"threads": 1})


@settings(max_examples=15, deadline=None)
@example(TRICKY)
@given(CAPTIONS)
def test_digests_are_those_of_the_cleaned_captions(
    connection: duckdb.DuckDBPyConnection, tmp_path_factory: pytest.TempPathFactory, captions: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pool.parquet"
    batch = _rows(connection, path, captions)
    ids, checks, blank = digests_of(batch.column("digest"), batch.column("caption"))
    cleaned = [clean_caption(text) for text in captions]
    empty = [
        bool(is_blank) or reason == "empty"
        for is_blank, reason in zip(blank, batch["reason"].to_pylist(), strict=True)
    ]
    assert empty == [not text for text in cleaned]
    expected = [digest_halves(text) if text else (0, 0) for text in cleaned]
    assert list(zip(ids.tolist(), checks.tolist(), strict=True)) == expected


def _rows(connection: duckdb.DuckDBPyConnection, path: Path, captions: list[str]) -> pa.RecordBatch:
    pq.write_table(pa.table({"TEXT": captions}), path)
    config = ImportConfig(captions=[str(path)])
    table = inspect(SourceFile(str(path), path.name, path.stat().st_size), path, config)
    batches = list(connection.sql(rows_sql(table, config, rated=False)).to_arrow_reader(1 << 16))
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def test_a_control_character_sends_a_caption_to_python() -> None:
    caption = pa.array(["a\x7fdog", "a dog", None])
    wrong = pa.array(["0" * 64, "0" * 64, None])
    ids, _, blank = digests_of(wrong, caption)
    assert ids.tolist() == [digest_halves("adog")[0], 0, 0]
    assert not blank.any()
