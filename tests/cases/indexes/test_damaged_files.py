"""Shards, FAISS files and pending changes of an index that were cut off, swapped or lead elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cdkit.cli.app import execute_command
from cdkit.core.errors import InputError
from cdkit.core.manifest import MANIFEST_NAME, STARTED_NAME
from cdkit.core.shards import parts, read_parts
from cdkit.index.caption_index import INDEX_NAME
from cdkit.index.changes.compact import compact
from cdkit.index.search import search
from tests.cases.indexes.conftest import CAPTIONS, MANY, edit, uses
from tests.support.hashing_encoder import HashingEncoder


def _columns(table: pa.Table, value: Any) -> pa.Table:
    return pa.table({name: [value] * len(table) for name in table.column_names})


SHARDS: dict[str, Callable[[Path, pa.Table], object]] = {
    "gone": lambda path, table: path.unlink(),
    "empty": lambda path, table: path.write_bytes(b""),
    "cut off": lambda path, table: path.write_bytes(path.read_bytes()[:-20]),
    "noise": lambda path, table: path.write_bytes(b"PAR1" + b"\x07" * 500 + b"PAR1"),
    "another table": lambda path, table: pq.write_table(pa.table({"x": [1]}), path),
    "other types": lambda path, table: pq.write_table(_columns(table, "x"), path),
    "nulls": lambda path, table: pq.write_table(
        pa.table([pa.nulls(len(table), field.type) for field in table.schema], schema=table.schema), path
    ),
    "a folder": lambda path, table: (path.unlink(), path.mkdir()),
    "a pipe": lambda path, table: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("folder", ["compressed"], indirect=True)
@pytest.mark.parametrize("kind", ["captions", "image_rows", "embeddings"])
@pytest.mark.parametrize("damage", SHARDS)
@pytest.mark.timeout(120)
def test_shards_that_are_damaged(folder: Path, encoder: HashingEncoder, kind: str, damage: str) -> None:
    path = parts(folder / kind)[1]
    SHARDS[damage](path, pq.read_table(path))
    if damage != "gone":
        with pytest.raises(InputError, match=path.name) as error:
            list(read_parts(folder / kind))
        assert error.value.hint
    with pytest.raises(InputError, match=kind) as error:
        search(folder, MANY[:30], min_similarity=0.5, limit=10_000, encoder=encoder)
    assert "--force" in error.value.hint
    with pytest.raises(InputError, match=kind):
        compact(folder)


def _flat(dimension: int, count: int, metric: int = faiss.METRIC_INNER_PRODUCT) -> Any:
    index = faiss.IndexIDMap2(faiss.IndexFlat(dimension, metric))
    index.add_with_ids(np.ones((count, dimension), np.float32), np.arange(count))
    return index


def _plain(dimension: int, count: int) -> Any:
    index = faiss.IndexFlatIP(dimension)
    index.add(np.ones((count, dimension), np.float32))
    return index


FILES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"not an index"),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "fewer vectors": lambda path: faiss.write_index(_flat(32, 7), str(path)),
    "another dimension": lambda path: faiss.write_index(_flat(33, 400), str(path)),
    "another metric": lambda path: faiss.write_index(_flat(32, 400, faiss.METRIC_L2), str(path)),
    "without ids": lambda path: faiss.write_index(_plain(32, 400), str(path)),
    "another kind": lambda path: faiss.write_index(faiss.IndexLSH(32, 64), str(path)),
}


@pytest.mark.parametrize("folder", ["exact", "compressed"], indirect=True)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("said", [False, True], ids=["the manifest's hash", "its own hash"])
def test_faiss_files_that_are_no_such_index(folder: Path, encoder: HashingEncoder, file: str, said: bool) -> None:
    path = folder / INDEX_NAME
    FILES[file](path)
    if said:
        facts = {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        edit(folder, lambda manifest: manifest["details"]["index"].update(facts))
    for use in (lambda: search(folder, [CAPTIONS[0]], encoder=encoder), lambda: compact(folder)):
        with pytest.raises(InputError, match=INDEX_NAME) as error:
            use()
        assert "--force" in error.value.hint


COMMITS = {
    "no JSON": "{",
    "a list": "[]",
    "nothing": "{}",
    "deep": "[" * 100_000,
    "other types": '{"moves": {"captions/part-00000.parquet": 5}, "deletes": 5}',
    "a file above": '{"moves": {}, "deletes": ["../precious.parquet"]}',
    "a file anywhere": '{"moves": {}, "deletes": ["PRECIOUS"]}',
    "a move from above": '{"moves": {"captions/part-00000.parquet": "../precious.parquet"}, "deletes": []}',
    "a move to above": '{"moves": {"../precious.parquet": "captions/part-00000.parquet"}, "deletes": []}',
}


@pytest.mark.parametrize("commit", COMMITS)
def test_a_change_that_came_with_the_folder_touches_nothing_outside(
    folder: Path, encoder: HashingEncoder, commit: str
) -> None:
    precious = folder.parent / "precious.parquet"
    precious.write_text("precious")
    (folder / "pending").mkdir()
    (folder / "pending" / "commit.json").write_text(COMMITS[commit].replace("PRECIOUS", str(precious)))
    for _, use in uses(folder, encoder):
        with pytest.raises(InputError, match=r"commit\.json is damaged") as error:
            use()
        assert "Delete" in error.value.hint
    assert precious.read_text() == "precious"
    assert len(parts(folder / "captions")) == 4


@pytest.mark.parametrize("table", [pa.table({"x": [1]}), pa.table({"caption_id": ["x"], "url": [1]})])
def test_tombstones_that_are_damaged(folder: Path, encoder: HashingEncoder, table: pa.Table) -> None:
    (folder / "removed").mkdir()
    pq.write_table(table, folder / "removed" / "part-00000.parquet")
    for _, use in uses(folder, encoder):
        with pytest.raises(InputError, match="removed"):
            use()


@pytest.mark.parametrize("name", [MANIFEST_NAME, STARTED_NAME, INDEX_NAME])
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
@pytest.mark.timeout(60)
def test_files_of_an_index_that_are_no_files(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert execute_command(["index", "info", str(folder)]) == (0 if name == STARTED_NAME else 3)


def test_paths_that_libraries_do_not_take(made: dict[str, Path], tmp_path: Path, encoder: HashingEncoder) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(made["exact"], strange)
    for _, use in uses(strange, encoder):
        with pytest.raises(InputError) as error:
            use()
        assert "UTF-8" in error.value.hint
    pool = tmp_path / "p.csv"
    pool.write_text("caption\na dog\n")
    for out in (tmp_path / os.fsdecode(b"out\xe9"), tmp_path / ("x" * 300), tmp_path / "/".join(["y" * 200] * 25)):
        assert execute_command(["index", "import", "--captions", str(pool), "--out", str(out)]) in (2, 3, 7)
        assert execute_command(["index", "info", str(out)]) == 3
